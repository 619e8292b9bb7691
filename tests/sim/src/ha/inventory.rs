//! The cluster of a history: its hosts, guests and rules.

use std::collections::BTreeSet;

use cluster_core::model::{Guest, Readiness, Resources, Rule};
use cluster_core::settings::{HostEntry, Inventory, IsolationResponse};

use super::Kind;
use crate::rng::Rng;

/// An inventory of `hosts` hosts with `per_host` guests each.
pub fn inventory(rng: &mut Rng, hosts: u64, per_host: u64, fencing: bool, kind: Kind) -> Inventory {
    let mut inventory = Inventory {
        fencing,
        ..Inventory::default()
    };
    inventory.settings.timings.dependency_patience_ms = 20_000;
    for i in 0..hosts {
        let memory = (per_host + 2) * 2048;
        let capacity = Resources::new(64_000, memory);
        let entry = HostEntry {
            capacity,
            ..HostEntry::default()
        };
        inventory.hosts.insert(format!("h{i:02}"), entry);
    }
    let count = hosts * per_host;
    for i in 0..count {
        let memory = rng.between(1, 2) * 1024;
        let mut guest = Guest::sized(Resources::new(500, memory));
        if kind == Kind::Random {
            if rng.chance(100) && i > 0 {
                let other = format!("g{:03}", rng.below(i));
                guest.after.insert(other, Readiness::Running);
            }
            guest.protected = !rng.chance(50);
        }
        inventory.guests.insert(format!("g{i:03}"), guest);
    }
    if kind == Kind::Random && count >= 2 {
        let guests = [0, 1].map(|i| format!("g{i:03}"));
        let rule = Rule::KeepApart {
            guests: BTreeSet::from(guests),
        };
        if hosts > 1 && rng.chance(500) {
            inventory.rules.insert("apart".into(), rule);
        }
        inventory.settings.isolation_response = *rng.pick(&[
            IsolationResponse::Leave,
            IsolationResponse::ShutDown,
            IsolationResponse::PowerOff,
        ]);
    }
    inventory
}
