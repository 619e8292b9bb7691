//! The cluster in dense form: indices instead of names, sums kept up to date.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crate::model::{Affinity, Cluster, Guest, GuestId, HostId, Resources, Rule};

/// Index of a host.
pub(crate) type H = u32;
/// Index of a guest.
pub(crate) type G = u32;

#[derive(Debug, Clone)]
pub(crate) struct DenseHost {
    pub capacity: Resources,
    pub used: Resources,
    /// What of it has to find room elsewhere when this host fails.
    pub lost: Resources,
    /// How many of its protected guests are bound by rules.
    pub bound: u32,
    /// Counts for failures and as a refuge.
    pub serves: bool,
    /// May be given a new guest now.
    pub receives: bool,
    pub guests: Vec<G>,
    /// [`Ledger::version`] when something about it last changed that a packing rests on.
    pub version: u64,
}

impl DenseHost {
    pub fn free(&self) -> Resources {
        self.capacity.minus(self.used)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct DenseGuest {
    pub size: Resources,
    pub host: Option<H>,
    pub protected: bool,
    /// Shall run, has no host (or one that is being emptied) and needs room in any case.
    pub displaced: bool,
    pub bonds: Option<Bonds>,
}

/// The hard rules on a guest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bonds {
    /// Indices of keep-apart rules.
    pub aparts: Vec<u32>,
    /// Indices of keep-together rules.
    pub togethers: Vec<u32>,
    /// Per host: allowed by guest-host rules. `None`: everywhere.
    pub allowed: Option<Vec<bool>>,
}

/// The cluster in dense form.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    pub host_names: Vec<HostId>,
    pub hosts: Vec<DenseHost>,
    pub guest_names: Vec<GuestId>,
    pub guests: Vec<DenseGuest>,
    pub displaced: BTreeSet<G>,
    pub togethers: Vec<Vec<G>>,
    /// Per keep-apart rule: how many of its guests are on which host.
    pub apart_on: Vec<BTreeMap<H, u32>>,
    /// No protected guest was ever larger.
    pub block: Resources,
    /// Counts changes.
    pub version: u64,
    /// The version at which every packing had to be looked at anew.
    pub all_version: u64,
    rules: BTreeMap<GuestId, Bonds>,
    by_guest: BTreeMap<GuestId, G>,
    by_host: BTreeMap<HostId, H>,
}

impl Ledger {
    pub fn new(cluster: &Cluster) -> Self {
        let mut ledger = Self {
            host_names: cluster.hosts.keys().cloned().collect(),
            hosts: Vec::new(),
            guest_names: Vec::new(),
            guests: Vec::new(),
            displaced: BTreeSet::new(),
            togethers: Vec::new(),
            apart_on: Vec::new(),
            block: Resources::default(),
            version: 0,
            all_version: 0,
            rules: BTreeMap::new(),
            by_guest: BTreeMap::new(),
            by_host: BTreeMap::new(),
        };
        for (index, (name, host)) in cluster.hosts.iter().enumerate() {
            ledger.by_host.insert(name.clone(), index as H);
            ledger.hosts.push(DenseHost {
                capacity: host.capacity,
                used: Resources::default(),
                lost: Resources::default(),
                bound: 0,
                serves: host.mode.serves(),
                receives: host.mode.receives(),
                guests: Vec::new(),
                version: 0,
            });
        }
        ledger.index_rules(cluster);
        for (name, guest) in &cluster.guests {
            let index = ledger.add(name, guest);
            let host = guest
                .host
                .as_ref()
                .and_then(|host| ledger.by_host.get(host))
                .copied();
            if guest.takes_room() {
                ledger.put(index, host);
            }
        }
        ledger
    }

    fn index_rules(&mut self, cluster: &Cluster) {
        for rule in cluster.rules.values() {
            let (apart, together) = (self.apart_on.len() as u32, self.togethers.len() as u32);
            match rule {
                Rule::KeepApart { .. } => self.apart_on.push(BTreeMap::new()),
                Rule::KeepTogether { .. } => self.togethers.push(Vec::new()),
                Rule::GuestsToHosts { hard: false, .. } => continue,
                Rule::GuestsToHosts { .. } => {}
            }
            for guest in rule.guests() {
                let bonds = self.rules.entry(guest.clone()).or_default();
                match rule {
                    Rule::KeepApart { .. } => bonds.aparts.push(apart),
                    Rule::KeepTogether { .. } => bonds.togethers.push(together),
                    Rule::GuestsToHosts {
                        group, affinity, ..
                    } => {
                        let hosts = cluster.hosts.values();
                        let here =
                            hosts.map(|h| h.groups.contains(group) == (*affinity == Affinity::On));
                        bonds.allowed = Some(match bonds.allowed.take() {
                            None => here.collect(),
                            Some(before) => before.iter().zip(here).map(|(a, b)| *a && b).collect(),
                        });
                    }
                }
            }
        }
    }

    /// Makes a guest known, or its reservation and protection up to date; it is nowhere yet
    /// if it is new.
    pub fn add(&mut self, name: &GuestId, guest: &Guest) -> G {
        if let Some(index) = self.by_guest.get(name).copied() {
            let was_displaced = self.guests[index as usize].displaced;
            let host = self.take(index);
            let known = &mut self.guests[index as usize];
            (known.size, known.protected) = (guest.reservation, guest.protected);
            if host.is_some() || was_displaced {
                self.put(index, host);
            }
            return index;
        }
        let index = self.guests.len() as G;
        let bonds = self.rules.get(name).cloned();
        for together in bonds.iter().flat_map(|bonds| &bonds.togethers) {
            self.togethers[*together as usize].push(index);
        }
        self.by_guest.insert(name.clone(), index);
        self.guest_names.push(name.clone());
        self.guests.push(DenseGuest {
            size: guest.reservation,
            host: None,
            protected: guest.protected,
            displaced: false,
            bonds,
        });
        index
    }

    /// Puts a guest on a host, or among those that wait for one.
    pub fn put(&mut self, index: G, host: Option<H>) {
        let guest = &mut self.guests[index as usize];
        guest.host = host;
        let serves = host.is_some_and(|host| self.hosts[host as usize].serves);
        guest.displaced = if host.is_none() {
            guest.protected
        } else {
            !serves
        };
        if guest.displaced {
            self.displaced.insert(index);
        }
        self.changed(index);
        let Some(host) = host else { return };
        let guest = &self.guests[index as usize];
        let at = &mut self.hosts[host as usize];
        at.used = at.used.plus(guest.size);
        if guest.protected {
            at.lost = at.lost.plus(guest.size);
            at.bound += u32::from(guest.bonds.is_some());
            self.block.mcpu = self.block.mcpu.max(guest.size.mcpu);
            self.block.memory_mib = self.block.memory_mib.max(guest.size.memory_mib);
        }
        at.guests.push(index);
        for apart in guest.bonds.iter().flat_map(|bonds| &bonds.aparts) {
            *self.apart_on[*apart as usize].entry(host).or_default() += 1;
        }
    }

    /// Takes a guest off; returns where it was.
    pub fn take(&mut self, index: G) -> Option<H> {
        self.changed(index);
        self.displaced.remove(&index);
        let guest = &mut self.guests[index as usize];
        guest.displaced = false;
        let host = guest.host.take()?;
        let at = &mut self.hosts[host as usize];
        at.used = at.used.minus(guest.size);
        if guest.protected {
            at.lost = at.lost.minus(guest.size);
            at.bound -= u32::from(guest.bonds.is_some());
        }
        if let Some(place) = at.guests.iter().position(|other| *other == index) {
            at.guests.swap_remove(place);
        }
        for apart in guest.bonds.iter().flat_map(|bonds| &bonds.aparts) {
            let on = &mut self.apart_on[*apart as usize];
            if let Some(count) = on.get_mut(&host) {
                *count -= 1;
                if *count == 0 {
                    on.remove(&host);
                }
            }
        }
        Some(host)
    }

    /// Marks what packings rest on when this guest comes or goes.
    fn changed(&mut self, index: G) {
        self.version += 1;
        let guest = &self.guests[index as usize];
        let tied = guest
            .bonds
            .as_ref()
            .is_some_and(|bonds| !bonds.togethers.is_empty());
        if guest.displaced || tied {
            self.all_version = self.version;
        }
        if let Some(host) = guest.host {
            self.hosts[host as usize].version = self.version;
        }
    }

    /// Changes whether a host serves; its guests follow.
    pub fn set_mode(&mut self, host: H, serves: bool, receives: bool) {
        self.version += 1;
        self.all_version = self.version;
        let at = &mut self.hosts[host as usize];
        (at.serves, at.receives) = (serves, receives);
        for guest in at.guests.clone() {
            self.guests[guest as usize].displaced = !serves;
            if serves {
                self.displaced.remove(&guest);
            } else {
                self.displaced.insert(guest);
            }
        }
    }

    pub fn guest(&self, name: &str) -> Option<G> {
        self.by_guest.get(name).copied()
    }

    pub fn host(&self, name: &str) -> Option<H> {
        self.by_host.get(name).copied()
    }

    /// Hosts that serve, in order.
    pub fn serving(&self) -> impl Iterator<Item = H> {
        (0..self.hosts.len() as H).filter(|host| self.hosts[*host as usize].serves)
    }

    /// May a guest run on this host beside those that are there, but for room?
    pub fn allows(&self, guest: G, host: H) -> bool {
        let Some(bonds) = &self.guests[guest as usize].bonds else {
            return true;
        };
        bonds
            .allowed
            .as_ref()
            .is_none_or(|allowed| allowed[host as usize])
            && bonds
                .aparts
                .iter()
                .all(|apart| !self.apart_on[*apart as usize].contains_key(&host))
            && bonds
                .togethers
                .iter()
                .flat_map(|t| &self.togethers[*t as usize])
                .all(|fellow| {
                    *fellow == guest
                        || self.guests[*fellow as usize]
                            .host
                            .is_none_or(|at| at == host)
                })
    }

    /// The free room of all hosts that serve.
    pub fn free_of_all(&self) -> Resources {
        self.serving()
            .map(|host| self.hosts[host as usize].free())
            .fold(Resources::default(), Resources::plus)
    }

    pub fn names(&self, hosts: &[H]) -> Vec<String> {
        hosts
            .iter()
            .map(|host| self.host_names[*host as usize].clone())
            .collect()
    }

    pub fn flags(&self, hosts: &[H]) -> Vec<bool> {
        let mut flags = vec![false; self.hosts.len()];
        for host in hosts {
            flags[*host as usize] = true;
        }
        flags
    }
}
