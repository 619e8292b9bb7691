//! The books of admission control follow the cluster from one request to the next.
//!
//! What did not change is not touched: certificates rest on it, and they are what makes the next
//! verdict fast.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec;

use super::ledger::{G, H, Ledger};
use super::{Admission, MAX_RESERVE};
use crate::model::{Cluster, GroupId, Guest, GuestId, Rule};
use crate::settings::AdmissionPolicy;

/// What the books rest on as a whole: where it changes they are begun anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grounds {
    rules: BTreeMap<String, Rule>,
    groups: BTreeMap<H, BTreeSet<GroupId>>,
}

impl Grounds {
    pub fn of(cluster: &Cluster) -> Self {
        let groups = (0..).zip(cluster.hosts.values());
        let groups = groups.filter(|(_, host)| !host.groups.is_empty());
        Self {
            rules: cluster.rules.clone(),
            groups: groups.map(|(at, host)| (at, host.groups.clone())).collect(),
        }
    }

    fn hold_for(&self, cluster: &Cluster) -> bool {
        let none = BTreeSet::new();
        let groups = |at: &H| self.groups.get(at).unwrap_or(&none);
        self.rules == cluster.rules
            && (0..)
                .zip(cluster.hosts.values())
                .all(|(at, host)| *groups(&at) == host.groups)
    }
}

impl Admission {
    /// Bring the books up to date: guests that came, went, moved or changed their reservation,
    /// hosts that changed their mode, another policy. `false`: the cluster has other hosts,
    /// groups or rules; begin anew with [`Self::new`].
    #[must_use]
    pub fn follow(&mut self, cluster: &Cluster, policy: AdmissionPolicy) -> bool {
        // Guests that are gone keep their line; some day there are too many of those.
        let lines_max = 2 * (cluster.guests.len() + MAX_RESERVE as usize);
        if self.ledger.guests.len() > lines_max
            || !self.grounds.hold_for(cluster)
            || !self.ledger.follow_hosts(cluster)
        {
            return false;
        }
        self.policy = policy;
        self.ledger.follow_guests(cluster);
        true
    }
}

impl Ledger {
    fn follow_hosts(&mut self, cluster: &Cluster) -> bool {
        let same = self.host_names.iter().eq(cluster.hosts.keys())
            && (self.hosts.iter().map(|host| host.capacity))
                .eq(cluster.hosts.values().map(|host| host.capacity));
        for (index, host) in (0..).zip(cluster.hosts.values()).filter(|_| same) {
            let known = &self.hosts[index as usize];
            let mode = (host.mode.serves(), host.mode.receives());
            if (known.serves, known.receives) != mode {
                self.set_mode(index, mode.0, mode.1);
            }
        }
        same
    }

    fn follow_guests(&mut self, cluster: &Cluster) {
        let mut gone = vec![true; self.guests.len()];
        let mut next = 0;
        for (name, guest) in &cluster.guests {
            // Nearly all lines are in the order of the names.
            let here = self.guest_names.get(next as usize) == Some(name);
            let known = if here { Some(next) } else { self.guest(name) };
            if let Some(gone) = known.and_then(|index| gone.get_mut(index as usize)) {
                *gone = false;
            }
            next = 1 + self.follow_guest(known, name, guest);
        }
        for (index, _) in (0..).zip(gone).filter(|(_, gone)| *gone) {
            if self.takes_room(index) {
                self.take(index);
            }
        }
    }

    fn follow_guest(&mut self, known: Option<G>, name: &GuestId, guest: &Guest) -> G {
        if let Some(index) = known
            && self.is_as_written(index, guest)
        {
            return index;
        }
        let index = self.add(name, guest);
        self.take(index);
        if guest.takes_room() {
            let host = guest.host.as_ref().and_then(|host| self.host(host));
            self.put(index, host);
        }
        index
    }

    fn is_as_written(&self, index: G, guest: &Guest) -> bool {
        let known = &self.guests[index as usize];
        let host = known.host.map(|host| &self.host_names[host as usize]);
        (known.size, known.protected) == (guest.reservation, guest.protected)
            && self.takes_room(index) == guest.takes_room()
            && (host == guest.host.as_ref() || !guest.takes_room())
    }

    fn takes_room(&self, index: G) -> bool {
        let known = &self.guests[index as usize];
        known.host.is_some() || known.displaced
    }
}
