//! What one host's agent knows and decides: `step(now, event) -> actions`.
//!
//! Every host runs the same brain. As a member it beats, watches its peers, reports its
//! guests and starts what the leader orders; as the leader it also restarts what nobody
//! runs. It holds no truth: who owns a guest or the lead is what their leases say, and a
//! new brain (after an agent restart, on a new leader) finds out from them.

mod admitting;
mod duty;
mod early;
mod watch;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use storage_core::hold::Hold;

use self::early::EarlyOrders;
use crate::balance::Move;
use crate::drs::{Drs, Order};
use crate::event::{Action, Event, Level, Record};
use crate::health::{HostState, Peer};
use crate::leader::Contest;
use crate::leading::Leading;
use crate::member::Member;
use crate::messages::{GuestState, HostNote, Incarnation, LeaseSeen, Message, MoveOutcome};
use crate::model::{Cluster, GuestId, HostId};
use crate::observation::Observation;
use crate::settings::{Inventory, Settings, Waits};

/// Up to so many hosts each beats to each; beyond, to the leader and its neighbours.
const FULL_MESH_HOSTS: usize = 32;
/// Neighbours on either side in the ring of names.
const NEIGHBOURS: usize = 2;

/// The brain of one host.
#[derive(Debug, Clone)]
pub struct Brain {
    me: HostId,
    incarnation: Incarnation,
    now_us: u64,
    inventory: Option<Inventory>,
    peers: BTreeMap<HostId, Peer>,
    lead_seen: LeaseSeen,
    lead_read: bool,
    contest: Contest,
    hold: Hold,
    next_beat_us: u64,
    sequence: u64,
    note: HostNote,
    cut_off: bool,
    next_leave_us: u64,
    member: Member,
    early: EarlyOrders,
    leading: Option<Leading>,
}

impl Brain {
    /// The brain of host `me` in this life of it.
    pub fn new(me: HostId, incarnation: Incarnation) -> Self {
        Self {
            me,
            incarnation,
            now_us: 0,
            inventory: None,
            peers: BTreeMap::new(),
            lead_seen: LeaseSeen::default(),
            lead_read: false,
            contest: Contest::default(),
            hold: Hold::expired(0),
            next_beat_us: 0,
            sequence: 0,
            note: HostNote::default(),
            cut_off: false,
            next_leave_us: 0,
            member: Member::default(),
            early: EarlyOrders::default(),
            leading: None,
        }
    }

    /// Takes in one event and says what to do. `now_us`: the boottime clock; it never goes
    /// back.
    pub fn step(&mut self, now_us: u64, event: Event) -> Vec<Action> {
        self.now_us = self.now_us.max(now_us);
        let mut actions = Vec::new();
        // Most of what comes, by the hundred, only adds to what the next tick looks at.
        let mut look = matches!(event, Event::Tick | Event::Inventory(_));
        let led_by = self.lead_seen.epoch;
        self.take_in(event, &mut actions);
        look |= self.lead_seen.epoch != led_by;
        if self.inventory.is_some() {
            if look {
                self.beat(&mut actions);
                self.judge_peers(&mut actions);
                self.judge_self(&mut actions);
                self.take_early_orders(&mut actions);
                self.stop_unwanted(&mut actions);
                self.leave(&mut actions);
                self.seek_lead(&mut actions);
                self.lead(&mut actions);
            }
            self.report(&mut actions);
        }
        actions
    }

    /// The leader as its lease names it; itself, another host or nobody.
    pub fn leader(&self) -> Option<&HostId> {
        Some(&self.lead_seen.holder.as_ref()?.host)
    }

    /// Does this host lead, and may it act?
    pub fn leads(&self) -> bool {
        let covers = |leading: &Leading| self.hold.covers(self.now_us, leading.term);
        self.leading.as_ref().is_some_and(covers)
    }

    /// The epoch of the leader lease as last read.
    pub fn leader_epoch(&self) -> u64 {
        self.lead_seen.epoch
    }

    /// On the leader, the cluster as it is: hosts with their modes, guests on their hosts.
    pub fn cluster(&self) -> Option<&Cluster> {
        Some(self.leading.as_ref()?.cluster())
    }

    /// On the leader, what a guest's host last said that the guest does.
    pub fn reported(&self, guest: &str) -> Option<GuestState> {
        self.leading.as_ref()?.reported_state(guest)
    }

    /// On the leader, what was seen of the guests' and hosts' use of resources.
    pub fn observation(&self) -> Option<&Observation> {
        Some(self.leading.as_ref()?.observation())
    }

    /// On the leader, what balancing has planned and does.
    pub fn drs(&self) -> Option<&Drs> {
        Some(self.leading.as_ref()?.drs())
    }

    /// On the leader: the operator asks something of balancing. `None`: this host does not lead.
    pub fn order_balancing(&mut self, order: Order) -> Option<Result<String, String>> {
        Some(self.leading.as_mut()?.order_balancing(order))
    }

    /// On the leader, the guests that shall run and do not, and what each waits for.
    pub fn waiting(&self) -> Vec<(GuestId, String)> {
        self.leading
            .as_ref()
            .map(Leading::waiting)
            .unwrap_or_default()
    }

    /// On the leader: how many starts of it have failed since it last ran or somebody acted.
    pub fn failed_starts(&self, guest: &GuestId) -> u32 {
        let leading = self.leading.as_ref();
        leading.map_or(0, |leading| leading.failover.failed_starts(guest))
    }

    /// On the leader: migrate a guest, to the best host if none is named. Answers where it is,
    /// where it goes and the number of the order; how it went is told by the history.
    pub fn migrate(
        &mut self,
        guest: &GuestId,
        to: Option<&HostId>,
        because: &str,
    ) -> Result<(Move, u64, Vec<Action>), String> {
        if !self.leads() {
            return Err(format!("{} does not lead the cluster", self.me));
        }
        let leading = self.leading.as_mut().ok_or("no leader")?;
        let one = leading.choose_move(guest, to)?;
        let (number, order) = leading.order_move(self.now_us, &one, because);
        let mut actions = Vec::new();
        match order {
            Action::Send { to, message } => self.send_or_take(to, message, &mut actions),
            other => actions.push(other),
        }
        Ok((one, number, actions))
    }

    /// On the leader: which migration [`Brain::migrate`] would order.
    pub fn would_migrate(
        &self,
        guest: &GuestId,
        to: Option<&HostId>,
    ) -> Option<Result<Move, String>> {
        Some(self.leading.as_ref()?.choose_move(guest, to))
    }

    /// May this guest come to this host by live migration?
    pub fn may_arrive(&self, guest: &GuestId) -> Result<(), String> {
        let inventory = self.inventory.as_ref();
        let inventory = inventory.ok_or("this host has not read the datastore yet")?;
        let may_act = self.hold.is_live(self.now_us);
        self.member
            .may_arrive((&self.me, may_act), inventory, guest)
    }

    /// The state of another host as seen from here, and since when.
    pub fn peer(&self, host: &str) -> Option<(HostState, u64)> {
        self.peers
            .get(host)
            .map(|peer| (peer.state(), peer.since_us()))
    }

    /// Is this host cut off from all its peers while they live?
    pub fn is_cut_off(&self) -> bool {
        self.cut_off
    }

    /// The settings in force.
    pub fn settings(&self) -> Settings {
        self.inventory
            .as_ref()
            .map(|inventory| inventory.settings.clone())
            .unwrap_or_default()
    }

    /// On the leader: the operator wants this guest tried again, however often it failed.
    pub fn forgive(&mut self, guest: &GuestId) {
        if let Some(leading) = &mut self.leading {
            leading.failover.forgive(guest);
        }
    }

    fn waits(&self) -> Waits {
        self.inventory
            .as_ref()
            .map_or_else(|| Inventory::default().waits(), Inventory::waits)
    }

    fn take_in(&mut self, event: Event, actions: &mut Vec<Action>) {
        let now_us = self.now_us;
        match event {
            Event::Tick => {}
            Event::Inventory(inventory) => self.take_inventory(*inventory, actions),
            Event::Sighted {
                host,
                record,
                silent_us,
            } => {
                if let Some(peer) = self.peers.get_mut(&host) {
                    peer.sighted(now_us, record, silent_us);
                }
            }
            Event::Hold(hold) => self.hold = hold,
            Event::LeaderLease(seen) => self.take_leader_lease(seen, actions),
            Event::GuestLease { guest, seen } => {
                if let Some(leading) = &mut self.leading {
                    leading.lease_read(&guest, seen);
                }
            }
            Event::Wanted {
                guest,
                desired,
                revision,
            } => {
                if let Some(leading) = &mut self.leading {
                    leading.wanted(&guest, desired, revision);
                }
            }
            Event::Received { from, message } => self.receive(&from, message, actions),
            Event::Local { guest, now } => self.member.local(guest, now),
            Event::Counted { guest, counted } => self.member.counted(guest, counted),
            Event::HostCounted(counted) => {
                let by = self.settings().drs.smoothing;
                self.member.host_counted(counted, &by);
            }
            Event::Migrated { guest, outcome } => {
                if let Some(ended) = self.member.migrated(&guest, outcome) {
                    actions.push(Action::Record(ended.record));
                    self.send_or_take(ended.ordered_by, Message::Moved(ended.answer), actions);
                }
            }
            Event::StartDone { guest, outcome } => {
                if let Some((to, answer)) = self.member.start_done(&guest, outcome) {
                    self.send_or_take(to, Message::Started(answer), actions);
                }
            }
        }
    }

    fn take_inventory(&mut self, inventory: Inventory, actions: &mut Vec<Action>) {
        let now_us = self.now_us;
        let gone = self.peers.keys();
        let gone = gone.filter(|name| !inventory.hosts.contains_key(*name));
        for name in gone.filter(|_| self.leading.is_some()) {
            let text = "is no member of the cluster any more".to_string();
            record(actions, Level::Info, name, text);
        }
        self.peers
            .retain(|name, _| inventory.hosts.contains_key(name));
        for name in inventory.hosts.keys().filter(|name| **name != self.me) {
            self.peers
                .entry(name.clone())
                .or_insert_with(|| Peer::new(now_us));
        }
        if let Some(leading) = &mut self.leading {
            leading.take_inventory(&inventory);
        }
        self.inventory = Some(inventory);
    }

    fn take_leader_lease(&mut self, seen: LeaseSeen, actions: &mut Vec<Action>) {
        self.lead_read = true;
        if seen.epoch < self.lead_seen.epoch {
            return;
        }
        let (epoch, mine) = (seen.epoch, self.my_term(&seen));
        self.member.know_leader(epoch);
        if self.lead_seen != seen {
            self.contest = Contest::default();
            self.member.report_soon();
        }
        self.lead_seen = seen;
        match (&self.leading, mine, &self.inventory) {
            (Some(leading), Some(term), _) if (leading.epoch, leading.term) == (epoch, term) => {}
            (_, Some(term), Some(inventory)) => {
                self.leading = Some(Leading::new(epoch, term, inventory));
                let text = format!("leads the cluster, epoch {epoch}");
                record(actions, Level::Info, &self.me, text);
            }
            (Some(_), None, _) => {
                self.leading = None;
                let text = format!("no longer leads, epoch {epoch}");
                record(actions, Level::Info, &self.me, text);
            }
            _ => {}
        }
    }

    /// The term in which this boot of this host got the lease, if it did.
    fn my_term(&self, seen: &LeaseSeen) -> Option<u32> {
        let holder = seen.holder.as_ref()?;
        let mine = holder.host == self.me && holder.incarnation == self.incarnation;
        mine.then_some(holder.term)
    }

    fn receive(&mut self, from: &HostId, message: Message, actions: &mut Vec<Action>) {
        let now_us = self.now_us;
        // Whatever it says, it lives. A stranger is not listened to.
        let Some(peer) = self.peers.get_mut(from) else {
            return;
        };
        peer.heard(now_us);
        self.take_message(from, message, actions);
    }

    fn take_message(&mut self, from: &HostId, message: Message, actions: &mut Vec<Action>) {
        let now_us = self.now_us;
        match message {
            Message::Beat(beat) => self.member.know_leader(beat.leader_epoch),
            Message::Report(report) => {
                if let Some(leading) = &mut self.leading {
                    let guests = leading.reported(now_us, from, report);
                    if !guests.is_empty() {
                        actions.push(Action::ReadLeases { guests });
                    }
                }
            }
            Message::Start(order) => self.take_start(from, order, actions),
            Message::Move(order) => match self.member.ordered_move(from, &order) {
                Ok(migrate) => actions.extend(migrate),
                Err(refusal) => {
                    if let MoveOutcome::Failed { why } = &refusal.outcome {
                        let text = format!("is not migrated to {}: {why}", refusal.to);
                        record(actions, Level::Warning, &refusal.guest, text);
                    }
                    actions.push(Action::NotMigrated(refusal.clone()));
                    self.send_or_take(from.clone(), Message::Moved(refusal), actions);
                }
            },
            Message::Release(order) => {
                if let Some(release) = self.member.ordered_release(order) {
                    if let Action::Release { guest, because } = &release {
                        record(actions, Level::Warning, guest, because.clone());
                    }
                    actions.push(release);
                }
            }
            Message::Moved(answer) => {
                if let Some(leading) = &mut self.leading {
                    actions.extend(leading.moved(now_us, &answer));
                }
            }
            Message::Started(answer) => {
                let settings = self.settings();
                let incarnation = match self.peers.get(from) {
                    Some(peer) => peer.incarnation(),
                    None => Some(self.incarnation),
                };
                if let Some(leading) = &mut self.leading {
                    actions.extend(leading.answered(now_us, from, incarnation, &answer, &settings));
                }
            }
        }
    }

    /// Sends to a peer, or takes in at once what is for this host itself.
    fn send_or_take(&mut self, to: HostId, message: Message, actions: &mut Vec<Action>) {
        if to == self.me {
            self.take_message(&to, message, actions);
        } else {
            actions.push(Action::Send { to, message });
        }
    }

    fn stop_unwanted(&mut self, actions: &mut Vec<Action>) {
        if let Some(inventory) = &self.inventory {
            actions.extend(self.member.stop_unwanted(inventory));
        }
    }

    fn report(&mut self, actions: &mut Vec<Action>) {
        let Some(leader) = self.leader().cloned() else {
            return;
        };
        if let Some(report) = self.member.report(self.now_us, self.incarnation) {
            self.send_or_take(leader, Message::Report(report), actions);
        }
    }
}

fn record(actions: &mut Vec<Action>, level: Level, about: &str, text: String) {
    actions.push(Action::Record(Record {
        level,
        about: about.into(),
        text,
    }));
}

#[cfg(test)]
mod tests;
