//! What must always hold, and what must hold in the end.

use std::collections::BTreeMap;

use cluster_core::model::{Desired, Resources};
use cluster_core::placement::{place, usage};
use cluster_core::rules::RuleBook;
use cluster_core::settings::Inventory;
use storage_core::record::LeaseRecord;

use super::event::{MS, SECOND};
use super::host::Host;
use super::storage::LEAD;
use super::world::World;
use crate::harness::{Trace, Violation};

/// A host that was well for so long cannot have lost a lease by its own fault.
const WELL_US: u64 = 8 * SECOND;

/// A restart that a host has begun.
pub struct Start {
    pub host: usize,
    pub guest: String,
}

/// What was seen so far.
#[derive(Default)]
pub struct Checks {
    pub broken: Option<Violation>,
    /// Guests of the host whose power was cut, and when; each leaves when it is restarted.
    pub cut: BTreeMap<String, u64>,
    pub cut_was_leader: bool,
    pub first_seen: bool,
}

impl World {
    pub fn violate(&mut self, what: String) {
        let at_us = self.queue.now_us();
        self.checks.broken.get_or_insert(Violation { at_us, what });
    }

    /// A guest starts to run here: it must not run anywhere else.
    pub fn check_runner(&mut self, host: usize, guest: &str) {
        let now_us = self.queue.now_us();
        if !self.hosts[host].runs(guest, now_us) {
            return;
        }
        let other = (0..self.hosts.len())
            .find(|other| *other != host && self.hosts[*other].runs(guest, now_us));
        if let Some(other) = other {
            let (a, b) = (&self.hosts[host].name, &self.hosts[other].name);
            self.violate(format!("{guest} runs on {a} and on {b}"));
        }
    }

    /// After a thaw everything on the host is looked at.
    pub fn check_all_runners(&mut self, host: usize) {
        let guests: Vec<String> = self.hosts[host].vms.keys().cloned().collect();
        for guest in guests {
            self.check_runner(host, &guest);
        }
    }

    /// At most one brain acts as the leader.
    pub fn check_lead(&mut self, _trace: &mut Trace) {
        let now_us = self.queue.now_us();
        let leads = |host: &&Host| {
            host.up
                && now_us >= host.frozen_until_us
                && host.hold.is_live(host.clock(now_us))
                && host.agent.as_ref().is_some_and(|agent| agent.brain.leads())
        };
        let leaders: Vec<String> = self
            .hosts
            .iter()
            .filter(leads)
            .map(|host| host.name.clone())
            .collect();
        if leaders.len() > 1 {
            // A brain's own view is as old as its last step; ask the leases.
            let last = self.storage.last(LEAD).and_then(|l| l.holder.clone());
            let stale: Vec<&String> = leaders
                .iter()
                .filter(|name| last.as_ref().is_none_or(|holder| holder.host != **name))
                .collect();
            if !stale.is_empty() {
                self.violate(format!("{} lead at the same time", leaders.join(" and ")));
            }
        }
    }

    /// Nobody takes a lease from a host that is well.
    pub fn check_takeover(&mut self, record: &LeaseRecord, before: Option<&LeaseRecord>) {
        let now_us = self.queue.now_us();
        let Some(holder) = before.and_then(|before| before.holder.as_ref()) else {
            return;
        };
        let Some(index) = self.index(&holder.host) else {
            return;
        };
        let host = &self.hosts[index];
        let same_boot = host.incarnation() == holder.incarnation;
        let well = host.keeps() && same_boot && self.reaches_storage(index);
        if well && now_us >= host.well_since_us + WELL_US {
            let what = format!(
                "{} was taken from {}, which was well",
                record.subject, holder.host
            );
            self.violate(what);
        }
    }

    /// A restart begins: room must be there, and the time since the power cut is noted.
    pub fn note_start(&mut self, start: &Start) {
        let now_us = self.queue.now_us();
        let host = &self.hosts[start.host];
        let reserved = host
            .vms
            .keys()
            .filter_map(|guest| self.inventory.guests.get(guest));
        let reserved = reserved.fold(Resources::default(), |sum, guest| {
            sum.plus(guest.reservation)
        });
        let capacity = self.inventory.hosts[&host.name].capacity;
        if !reserved.fits(capacity) {
            let what = format!("{} was given {reserved}, it has {capacity}", host.name);
            self.violate(what);
        }
        if let Some(cut_us) = self.checks.cut.remove(&start.guest) {
            let took_ms = (now_us - cut_us) / MS;
            if !self.checks.first_seen {
                self.checks.first_seen = true;
                self.tally
                    .restarts
                    .push((self.checks.cut_was_leader, self.fencing, took_ms));
            }
            if self.checks.cut.is_empty() {
                self.tally.last_restarts.push(took_ms);
            }
        }
    }

    /// Long after the last fault everything that fits runs, once.
    pub fn check_end(&self) -> Result<(), Violation> {
        let now_us = self.queue.now_us();
        let broken = |what| {
            Err(Violation {
                at_us: now_us,
                what,
            })
        };
        let cluster = self.truth();
        for (name, guest) in &self.inventory.guests {
            let runners = self
                .hosts
                .iter()
                .filter(|host| host.runs(name, now_us))
                .count();
            match (guest.desired, runners) {
                (Desired::Stopped, 0) | (Desired::Running, 1) => {}
                (Desired::Running, 0) => {
                    let book = RuleBook::new(&self.inventory.rules);
                    let avoid = std::collections::BTreeSet::new();
                    let room = place(&cluster, &book, &usage(&cluster), name, &avoid);
                    if let Ok(choice) = room {
                        return broken(format!("{name} does not run although {}", choice.because));
                    }
                }
                (_, count) => {
                    return broken(format!(
                        "{name} shall be {:?}, {count} run it",
                        guest.desired
                    ));
                }
            }
        }
        Ok(())
    }

    /// The cluster as it truly is.
    fn truth(&self) -> cluster_core::model::Cluster {
        let now_us = self.queue.now_us();
        let inventory: &Inventory = &self.inventory;
        let mut guests = inventory.guests.clone();
        for (name, guest) in &mut guests {
            let host = self.hosts.iter().find(|host| host.runs(name, now_us));
            guest.host = host.map(|host| host.name.clone());
        }
        let hosts = inventory
            .hosts
            .iter()
            .zip(&self.hosts)
            .map(|((name, entry), host)| {
                use cluster_core::model::{Host, HostMode};
                let mode = match (host.up, entry.maintenance) {
                    (false, _) => HostMode::Lost,
                    (_, true) => HostMode::Maintenance,
                    _ => HostMode::Active,
                };
                let host = Host {
                    capacity: entry.capacity,
                    mode,
                    groups: entry.groups.clone(),
                };
                (name.clone(), host)
            });
        cluster_core::model::Cluster {
            hosts: hosts.collect(),
            guests,
            rules: inventory.rules.clone(),
        }
    }
}
