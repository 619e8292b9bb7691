//! What a plan rests on besides demand, and what, when it changes, asks for a new one at once.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use super::{Automation, DrsSettings};
use crate::model::{Cluster, GroupId, Guest, GuestId, Host, HostId, HostMode, Resources, Rule};
use crate::settings::{AdmissionPolicy, Enforcement, Settings};

/// Of a guest, what its owner set; that it comes or goes can wait for the next round.
type OfGuest = (Resources, bool, Option<Automation>);
/// Of a host, what its operator set.
type OfHost = (HostMode, BTreeSet<GroupId>);

/// The circumstances of a plan.
#[derive(Debug, Clone)]
pub(super) struct Circumstances {
    hosts: Vec<(HostId, OfHost)>,
    guests: BTreeMap<GuestId, OfGuest>,
    rules: BTreeMap<String, Rule>,
    drs: DrsSettings,
    admission: (AdmissionPolicy, Enforcement),
}

fn of_guest(guest: &Guest) -> OfGuest {
    (guest.reservation, guest.movable, guest.automation)
}

impl Circumstances {
    /// As they are now.
    pub fn of(cluster: &Cluster, settings: &Settings) -> Self {
        let of_host = |host: &Host| (host.mode, host.groups.clone());
        let hosts = cluster.hosts.iter();
        let guests = cluster.guests.iter();
        Self {
            hosts: hosts
                .map(|(name, host)| (name.clone(), of_host(host)))
                .collect(),
            guests: guests
                .map(|(name, guest)| (name.clone(), of_guest(guest)))
                .collect(),
            rules: cluster.rules.clone(),
            drs: settings.drs.clone(),
            admission: (settings.admission, settings.enforcement),
        }
    }

    /// Are they still the same? Asked often, so nothing is copied.
    pub fn hold(&self, cluster: &Cluster, settings: &Settings) -> bool {
        let hosts = cluster.hosts.iter();
        let same_hosts = hosts
            .map(|(name, host)| (name, host.mode, &host.groups))
            .eq(self
                .hosts
                .iter()
                .map(|(name, (mode, groups))| (name, *mode, groups)));
        let mut guests = cluster.guests.iter();
        let same_guests = guests.all(|(name, guest)| {
            let then = self.guests.get(name);
            then.is_none_or(|then| *then == of_guest(guest))
        });
        same_hosts
            && same_guests
            && self.rules == cluster.rules
            && self.drs == settings.drs
            && self.admission == (settings.admission, settings.enforcement)
    }
}
