//! Where the guests of lost hosts would be restarted.

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::model::{Cluster, Guest, GuestId, HostId, HostMode};
use crate::placement::{place, usage};
use crate::rules::RuleBook;

/// A guest of a lost host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Restart {
    /// The guest.
    pub guest: GuestId,
    /// Where it would be restarted, if anywhere.
    pub host: Option<HostId>,
    /// Why there, or why nowhere.
    pub because: String,
}

/// Restarts the protected guests of lost hosts, in their order, where placement puts them.
pub fn restart(cluster: &mut Cluster) -> Vec<Restart> {
    let lost = |cluster: &Cluster, guest: &Guest| {
        let host = guest.host.as_ref().and_then(|host| cluster.hosts.get(host));
        host.is_some_and(|host| host.mode == HostMode::Lost)
    };
    let mut homeless: Vec<_> = cluster
        .guests
        .iter()
        .filter(|(_, guest)| lost(cluster, guest))
        .map(|(name, guest)| (guest.priority, name.clone(), guest.protected))
        .collect();
    homeless.sort();
    for (_, name, _) in &homeless {
        if let Some(guest) = cluster.guests.get_mut(name) {
            guest.host = None;
        }
    }
    let rules = cluster.rules.clone();
    let book = RuleBook::new(&rules);
    let mut used = usage(cluster);
    let mut restarts = Vec::new();
    for (_, name, protected) in homeless {
        let found = if protected {
            place(cluster, &book, &used, &name, &BTreeSet::new()).map_err(|nowhere| nowhere.because)
        } else {
            Err("it is not protected".to_string())
        };
        if let (Ok(choice), Some(guest)) = (&found, cluster.guests.get_mut(&name)) {
            guest.host = Some(choice.host.clone());
            if let Some(at) = used.get_mut(&choice.host) {
                at.reserved = at.reserved.plus(guest.reservation);
                at.wanted = at.wanted.plus(guest.demand);
            }
        }
        let (host, because) = match found {
            Ok(choice) => (Some(choice.host), choice.because),
            Err(because) => (None, because),
        };
        restarts.push(Restart {
            guest: name,
            host,
            because,
        });
    }
    restarts
}
