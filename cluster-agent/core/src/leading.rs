//! What the leader does besides: know where every guest is, and restart what nobody runs.

mod moving;
mod promises;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crate::admission::Admission;
use crate::demand::Smoothing;
use crate::drs::Drs;
use crate::event::{Action, Level, Record};
use crate::failover::{Decision, Failover, NOBODY_HOLDS_IT, Situation};
use crate::health::{HostState, Peer};
use crate::messages::{
    GuestState, Holder, Incarnation, LeaseSeen, Message, ReleaseOrder, Report, StartAnswer,
    StartOrder, StartOutcome,
};
use crate::model::{Cluster, Desired, GuestId, Host, HostId, HostMode};
use crate::moves::Orders;
use crate::observation::Observation;
use crate::owners::{Owners, Whereabouts};
use crate::settings::{Inventory, Settings, Waits};
use promises::Promises;

/// A lease that could not be read is asked for again after so long.
const ASK_AGAIN_US: u64 = 2_000_000;
/// How long a new leader waits at most to hear hosts it never heard.
const GATHER_US: u64 = 3_000_000;
/// How often the leader looks at all guests while nothing changes and nothing is under way.
const IDLE_US: u64 = 1_000_000;
/// The same while guests wait or are being started: patience runs out by itself.
const BUSY_US: u64 = 200_000;

/// The state of a leader.
#[derive(Debug, Clone)]
pub struct Leading {
    /// The epoch of its lease.
    pub epoch: u64,
    /// The term of this host's hold in which it was got.
    pub term: u32,
    /// Restarts under way.
    pub failover: Failover,
    owners: Owners,
    cluster: Cluster,
    /// As it was when it was last asked.
    admission: Option<Admission>,
    promises: Promises,
    observation: Observation,
    smoothing: Smoothing,
    drs: Drs,
    moves: Orders,
    /// Number of the last order to migrate.
    last_order: u64,
    /// What was seen of the hosts last: mode, incarnation, leases lapsed.
    hosts_seen: Vec<(HostMode, Option<Incarnation>, bool)>,
    changed: bool,
    next_look_us: u64,
    /// Until then hosts that were not heard yet are waited for, lest the first one to come
    /// up starts every guest itself.
    gather_until_us: Option<u64>,
}

impl Leading {
    /// A leader that knows nothing yet but the inventory.
    pub fn new(epoch: u64, term: u32, inventory: &Inventory) -> Self {
        let mut leading = Self {
            epoch,
            term,
            failover: Failover::default(),
            owners: Owners::default(),
            cluster: Cluster::default(),
            admission: None,
            promises: Promises::default(),
            observation: Observation::default(),
            smoothing: Smoothing::default(),
            drs: Drs::default(),
            moves: Orders::default(),
            last_order: 0,
            hosts_seen: Vec::new(),
            changed: true,
            next_look_us: 0,
            gather_until_us: None,
        };
        leading.take_inventory(inventory);
        leading
    }

    /// The cluster as it is.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// What a guest's host last said that the guest does.
    pub fn reported_state(&self, guest: &str) -> Option<GuestState> {
        Some(self.owners.get(guest)?.report.as_ref()?.state)
    }

    /// What was seen of its use.
    pub fn observation(&self) -> &Observation {
        &self.observation
    }

    /// Balancing.
    pub fn drs(&self) -> &Drs {
        &self.drs
    }

    /// Guests that wait, and for what.
    pub fn waiting(&self) -> Vec<(GuestId, String)> {
        self.failover
            .waiting()
            .map(|(guest, why)| (guest.clone(), why.clone()))
            .collect()
    }

    /// The inventory changed.
    pub fn take_inventory(&mut self, inventory: &Inventory) {
        self.changed = true;
        self.owners
            .retain(|guest| inventory.guests.contains_key(guest));
        let hosts = inventory.hosts.iter().map(|(name, entry)| {
            let mode = if entry.maintenance || entry.leaving {
                HostMode::Maintenance
            } else {
                HostMode::Quiet
            };
            let host = Host {
                capacity: entry.capacity,
                mode,
                groups: entry.groups.clone(),
            };
            (name.clone(), host)
        });
        let old = core::mem::take(&mut self.cluster);
        self.cluster = Cluster {
            hosts: hosts.collect(),
            guests: inventory.guests.clone(),
            rules: inventory.rules.clone(),
        };
        for (name, guest) in &mut self.cluster.guests {
            let Some(old) = old.guests.get(name) else {
                continue;
            };
            guest.host.clone_from(&old.host);
            // It may have been read by itself since.
            if old.revision > guest.revision {
                (guest.desired, guest.revision) = (old.desired, old.revision);
            }
        }
        self.smoothing = inventory.settings.drs.smoothing;
        self.observation.apply(&mut self.cluster);
    }

    /// A guest's lease was read.
    pub fn lease_read(&mut self, guest: &GuestId, seen: LeaseSeen) {
        if self.cluster.guests.contains_key(guest) {
            self.changed = true;
            self.owners.lease_read(guest, seen);
        }
    }

    /// What the operator wants of a guest was read, by itself and so perhaps ahead of the inventory.
    pub fn wanted(&mut self, guest: &GuestId, desired: Desired, revision: u64) {
        if let Some(known) = self.cluster.guests.get_mut(guest)
            && revision > known.revision
        {
            (known.desired, known.revision) = (desired, revision);
            self.changed = true;
        }
    }

    /// A member reported. Returns the guests whose lease has to be read.
    pub fn reported(&mut self, now_us: u64, host: &HostId, report: Report) -> Vec<GuestId> {
        self.observation
            .reported(now_us, host, &report, &mut self.cluster, &self.smoothing);
        let known = &self.cluster.guests;
        let guests = report
            .guests
            .into_iter()
            .filter(|(name, _)| known.contains_key(name));
        let guests = guests.collect();
        let (doubtful, changed) = self
            .owners
            .reported(now_us, host, report.incarnation, guests);
        self.changed |= changed;
        doubtful.into_iter().collect()
    }

    /// A member answered an order.
    pub fn answered(
        &mut self,
        now_us: u64,
        from: &HostId,
        incarnation: Option<Incarnation>,
        answer: &StartAnswer,
        settings: &Settings,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        self.changed = true;
        let seen = match &answer.outcome {
            StartOutcome::Running { epoch } => {
                let epoch = *epoch;
                incarnation.map(|incarnation| LeaseSeen {
                    epoch,
                    holder: Some(Holder {
                        host: from.clone(),
                        incarnation,
                        term: 0,
                    }),
                })
            }
            StartOutcome::LostRace { seen } if seen.holder.is_some() => Some(seen.clone()),
            StartOutcome::LostRace { .. } | StartOutcome::Failed { .. } => {
                // The lease was taken and released: the next order needs its new epoch, and to
                // know whether the guest is wanted still.
                actions.push(Action::ReadLeases {
                    guests: Vec::from([answer.guest.clone()]),
                });
                None
            }
            StartOutcome::Refused { .. } => None,
        };
        if let Some(seen) = seen {
            self.lease_read(&answer.guest, seen);
        }
        let decision =
            self.failover
                .answered(now_us, from, &answer.guest, &answer.outcome, settings);
        actions.extend(
            decision
                .into_iter()
                .flat_map(|decision| self.carry_out(decision)),
        );
        actions
    }

    /// Looks at the cluster anew and restarts what has to be.
    pub fn step(
        &mut self,
        now_us: u64,
        me: (&HostId, Incarnation),
        peers: &BTreeMap<HostId, Peer>,
        settings: &Settings,
        t: &Waits,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        self.see_hosts(now_us, me.0, peers, t);
        let guests = &self.cluster.guests;
        let has = |host: &HostId, guest: &GuestId| {
            let guest = guests.get(guest);
            guest.is_some_and(|guest| guest.host.as_ref() == Some(host))
        };
        actions.extend(self.moves.repeat(now_us, has));
        if !self.changed && now_us < self.next_look_us {
            return actions;
        }
        let wanted = self.cluster.guests.iter();
        let wanted = wanted
            .filter(|(_, g)| g.desired == Desired::Running)
            .map(|(name, _)| name);
        let isolated = |peer: &Peer| peer.state() == HostState::Isolated;
        let cut_off = |host: &HostId| peers.get(host).is_some_and(isolated);
        let guests = self.owners.to_ask(now_us, ASK_AGAIN_US, wanted, cut_off);
        if !guests.is_empty() {
            actions.push(Action::ReadLeases { guests });
        }
        actions.extend(self.free_abandoned(now_us, peers));
        let gather_until_us = *self.gather_until_us.get_or_insert(now_us + GATHER_US);
        if now_us < gather_until_us && peers.values().any(|peer| peer.unknown(t)) {
            return actions;
        }
        let whereabouts = self.see_guests(me, peers, t);
        let situation = Situation {
            cluster: &self.cluster,
            whereabouts: &whereabouts,
            owners: &self.owners,
            settings,
        };
        let decisions = self.failover.step(now_us, &situation);
        // Guests without a home come first: what they will need is not known yet.
        let unsure = |at: &Whereabouts| matches!(at, Whereabouts::Unknown);
        if self.failover.under_way().next().is_none() && !whereabouts.values().any(unsure) {
            let balancing = self.drs.step(now_us, &self.cluster, settings);
            actions.extend(balancing.into_iter().map(|wish| self.balance(now_us, wish)));
        }
        self.changed = false;
        self.next_look_us = now_us
            + if self.failover.is_idle() && self.drs.under_way().is_empty() {
                IDLE_US
            } else {
                BUSY_US
            };
        actions.extend(
            decisions
                .into_iter()
                .flat_map(|decision| self.carry_out(decision)),
        );
        actions
    }

    /// Guests that a living host holds and does not run are to be let go by it, so that they
    /// can be started like any other that nobody has.
    fn free_abandoned(&mut self, now_us: u64, peers: &BTreeMap<HostId, Peer>) -> Vec<Action> {
        let abandoned = self.owners.abandoned(now_us);
        let living = abandoned.into_iter().filter(|(_, host)| {
            let peer = peers.get(host);
            peer.is_none_or(|peer| !peer.state().lapsed())
        });
        let release = living.map(|(guest, host)| {
            let order = ReleaseOrder {
                because: format!("{host} holds it and does not run it, so it lets go of it"),
                guest,
                leader_epoch: self.epoch,
            };
            Action::Send {
                to: host,
                message: Message::Release(order),
            }
        });
        release.collect()
    }

    fn see_hosts(&mut self, now_us: u64, me: &HostId, peers: &BTreeMap<HostId, Peer>, t: &Waits) {
        let mut seen = Vec::with_capacity(self.cluster.hosts.len());
        for (name, host) in &mut self.cluster.hosts {
            let resting = host.mode == HostMode::Maintenance;
            host.mode = match peers.get(name) {
                None if name == me && !resting => HostMode::Active,
                Some(peer) if peer.state().lapsed() => HostMode::Lost,
                Some(peer) if peer.trusted(now_us) => HostMode::Active,
                Some(peer) if peer.state() == HostState::Maintenance => HostMode::Maintenance,
                _ if resting => HostMode::Maintenance,
                _ => HostMode::Quiet,
            };
            let peer = peers.get(name);
            let lapsed = peer.is_some_and(|peer| peer.stands(t));
            seen.push((host.mode, peer.and_then(Peer::incarnation), lapsed));
        }
        self.changed |= seen != self.hosts_seen;
        self.hosts_seen = seen;
    }

    fn see_guests(
        &mut self,
        me: (&HostId, Incarnation),
        peers: &BTreeMap<HostId, Peer>,
        t: &Waits,
    ) -> BTreeMap<GuestId, Whereabouts> {
        let mut all = BTreeMap::new();
        for (name, guest) in &mut self.cluster.guests {
            let at = self.owners.whereabouts(name, me, peers, t);
            guest.host = match &at {
                Whereabouts::Held(host) => Some(host.clone()),
                _ => None,
            };
            all.insert(name.clone(), at);
        }
        all
    }

    fn carry_out(&self, decision: Decision) -> Vec<Action> {
        let record = |level, about: GuestId, text| Action::Record(Record { level, about, text });
        match decision {
            Decision::Order {
                guest,
                host,
                from_epoch,
                because,
            } => {
                let wanted = because.starts_with(NOBODY_HOLDS_IT);
                let level = if wanted { Level::Info } else { Level::Warning };
                let text = format!("is started on {host}: {because}");
                let order = StartOrder {
                    guest: guest.clone(),
                    leader_epoch: self.epoch,
                    from_epoch,
                    spec_revision: self.cluster.guests.get(&guest).map_or(0, |g| g.revision),
                    because,
                };
                let send = Action::Send {
                    to: host,
                    message: Message::Start(order),
                };
                vec![send, record(level, guest, text)]
            }
            Decision::Waits { guest, because } => {
                let text = format!("waits: {because}");
                vec![record(Level::Warning, guest, text)]
            }
            Decision::Failed { guest, because } => {
                let text = format!("start failed: {because}");
                vec![record(Level::Warning, guest, text)]
            }
        }
    }
}
