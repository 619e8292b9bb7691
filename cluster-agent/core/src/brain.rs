//! What one host's agent knows and decides: `step(now, event) -> actions`.
//!
//! Every host runs the same brain. As a member it beats, watches its peers, reports its
//! guests and starts what the leader orders; as the leader it also restarts what nobody
//! runs. It holds no truth: who owns a guest or the lead is what their leases say, and a
//! new brain (after an agent restart, on a new leader) finds out from them.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use storage_core::hold::Hold;

use crate::admission::{Admission, Admitted, Refusal, Reserve};
use crate::balance::Move;
use crate::drs::{Drs, Order};
use crate::event::{Action, Event, Level, Record, StopHow};
use crate::health::{Change, HostState, Peer, Wanted};
use crate::leader::{Contest, vacancy};
use crate::leading::Leading;
use crate::member::Member;
use crate::messages::{Beat, HostNote, Incarnation, LeaseSeen, Message, MoveOutcome};
use crate::model::{Cluster, Guest, GuestId, HostId, Resources};
use crate::observation::Observation;
use crate::settings::{Inventory, IsolationResponse, Settings, Waits};

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
    member: Member,
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
            member: Member::default(),
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
                self.stop_unwanted(&mut actions);
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

    /// On the leader: may this guest be started, or have this reservation, under the admission
    /// policy? An admitted guest goes where the verdict says once it is wanted. `None`: this
    /// host does not lead; ask the one that does.
    pub fn admit(&mut self, name: &GuestId, guest: &Guest) -> Option<Result<Admitted, Refusal>> {
        let policy = self.settings().admission;
        let leading = self.leading.as_mut()?;
        let verdict = Admission::new(leading.cluster(), policy).may_start(name, guest);
        if let Ok(admitted) = &verdict {
            leading.failover.hint(name, admitted.host.clone());
        }
        Some(verdict)
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

    /// On the leader: may this host be emptied for maintenance under the admission policy?
    pub fn may_rest(&self, host: &str) -> Option<Result<(), Refusal>> {
        let policy = self.settings().admission;
        Some(Admission::new(self.cluster()?, policy).may_rest(host))
    }

    /// On the leader: how many more guests of this size would be admitted?
    pub fn reserve(&self, size: Resources) -> Option<Reserve> {
        let policy = self.settings().admission;
        Some(Admission::new(self.cluster()?, policy).reserve(size))
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

    /// The operator changed something about a guest (or all): failed starts are forgiven.
    pub fn forgive(&mut self, guest: Option<&GuestId>) {
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
            Event::Inventory(inventory) => self.take_inventory(*inventory),
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
            Event::Received { from, message } => self.receive(&from, message, actions),
            Event::Local { guest, now } => self.member.local(guest, now),
            Event::Counted { guest, counted } => self.member.counted(guest, counted),
            Event::HostCounted(counted) => self.member.host_counted(counted),
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

    fn take_inventory(&mut self, inventory: Inventory) {
        let now_us = self.now_us;
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
            Message::Start(order) => {
                let Some(inventory) = &self.inventory else {
                    return;
                };
                let may_act = self.hold.is_live(now_us);
                let me = (&self.me, may_act);
                match self.member.ordered(now_us, me, inventory, from, order) {
                    Ok(start) => actions.extend(start),
                    Err(refusal) => {
                        self.send_or_take(from.clone(), Message::Started(refusal), actions);
                    }
                }
            }
            Message::Move(order) => match self.member.ordered_move(from, &order) {
                Ok(migrate) => actions.extend(migrate),
                Err(refusal) => {
                    if let MoveOutcome::Failed { why } = &refusal.outcome {
                        let text = format!("is not migrated to {}: {why}", refusal.to);
                        record(actions, Level::Warning, &refusal.guest, text);
                    }
                    self.send_or_take(from.clone(), Message::Moved(refusal), actions);
                }
            },
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

    fn beat(&mut self, actions: &mut Vec<Action>) {
        if self.now_us < self.next_beat_us {
            return;
        }
        self.next_beat_us = self.now_us + self.waits().beat_us;
        self.sequence += 1;
        let beat = Beat {
            incarnation: self.incarnation,
            sequence: self.sequence,
            leader_epoch: self.lead_seen.epoch,
        };
        for to in self.circle() {
            actions.push(Action::Send {
                to,
                message: Message::Beat(beat.clone()),
            });
        }
    }

    /// Those this host beats to and expects beats from.
    fn circle(&self) -> Vec<HostId> {
        let all: Vec<&HostId> = self.peers.keys().collect();
        if all.len() < FULL_MESH_HOSTS || self.leading.is_some() {
            return all.into_iter().cloned().collect();
        }
        let after = all.partition_point(|name| **name < self.me);
        let mut circle: Vec<HostId> = (0..NEIGHBOURS)
            .flat_map(|step| [after + step, after + all.len() - 1 - step])
            .map(|index| all[index % all.len()].clone())
            .collect();
        circle.extend(self.leader().filter(|leader| **leader != self.me).cloned());
        circle.sort();
        circle.dedup();
        circle
    }

    fn judge_peers(&mut self, actions: &mut Vec<Action>) {
        let (now_us, t, circle) = (self.now_us, self.waits(), self.circle());
        let Some(inventory) = &self.inventory else {
            return;
        };
        let mut heard = 0_u16;
        for (name, peer) in &mut self.peers {
            let expected = circle.binary_search(name).is_ok();
            peer.expect(now_us, expected);
            heard += u16::from(expected && peer.is_heard(now_us, &t));
            let entry = inventory.hosts.get(name);
            let wanted = match entry {
                Some(entry) if entry.leaving => Wanted::Leaving,
                Some(entry) if entry.maintenance => Wanted::Maintenance,
                _ => Wanted::Service,
            };
            if let Some(change) = peer.judge(now_us, wanted, &t)
                && self.leading.is_some()
            {
                record(actions, level_of(&change), name, words_of(name, &change));
            }
        }
        let note = HostNote {
            hears: heard,
            of: circle.len() as u16,
        };
        if note != self.note {
            self.note = note;
            actions.push(Action::Publish(note));
        }
    }

    /// Cut off: hears nobody although others live; responds once somebody else leads and
    /// is heard by others, so that a dead switch does not stop the whole cluster.
    fn judge_self(&mut self, actions: &mut Vec<Action>) {
        let (now_us, t) = (self.now_us, self.waits());
        let alone = self.note.of > 0
            && self.peers.values().all(|peer| peer.is_cut_off(now_us, &t))
            && self.peers.values().any(|peer| peer.beats(now_us, &t));
        if alone != self.cut_off {
            self.cut_off = alone;
            let text = if alone {
                format!(
                    "hears none of {} peers, though some beat on the datastore",
                    self.note.of
                )
            } else {
                "is no longer cut off from its peers".to_string()
            };
            record(actions, Level::Warning, &self.me, text);
        }
        let response = self.settings().isolation_response;
        if !alone || response == IsolationResponse::Leave || self.leading.is_some() {
            return;
        }
        let leader = self.leader().and_then(|leader| self.peers.get(leader));
        if !leader.is_some_and(|leader| leader.beats(now_us, &t) && leader.note().hears > 0) {
            return;
        }
        let how = match response {
            IsolationResponse::PowerOff => StopHow::PowerOff,
            _ => StopHow::ShutDown,
        };
        actions.extend(
            self.member
                .stop_all(how, &format!("{} is isolated", self.me)),
        );
    }

    fn stop_unwanted(&mut self, actions: &mut Vec<Action>) {
        if let Some(inventory) = &self.inventory {
            actions.extend(self.member.stop_unwanted(self.now_us, inventory));
        }
    }

    fn seek_lead(&mut self, actions: &mut Vec<Action>) {
        let (now_us, t) = (self.now_us, self.waits());
        let me = (&self.me, self.incarnation);
        if self.leads() {
            if let Some(because) = self.contest.step_down(now_us, self.note, &self.peers, &t) {
                self.leading = None;
                self.contest = Contest::default();
                actions.push(Action::ReleaseLeader { because });
            }
            return;
        }
        if !self.lead_read || !self.hold.is_live(now_us) {
            return;
        }
        let vacancy = vacancy(&self.lead_seen, me, self.hold.term(), &self.peers, &t);
        let entry = self
            .inventory
            .as_ref()
            .and_then(|inventory| inventory.hosts.get(&self.me));
        let resting = entry.is_some_and(|entry| entry.maintenance || entry.leaving);
        let mine = (&self.me, self.note, resting);
        if let Some(because) = self
            .contest
            .contend(now_us, vacancy.as_ref(), mine, &self.peers, &t)
        {
            let from_epoch = self.lead_seen.epoch;
            actions.push(Action::ContendForLeader {
                from_epoch,
                because,
            });
        }
    }

    fn lead(&mut self, actions: &mut Vec<Action>) {
        if !self.leads() {
            return;
        }
        let (now_us, settings, t) = (self.now_us, self.settings(), self.waits());
        let me = (&self.me, self.incarnation);
        let Some(leading) = &mut self.leading else {
            return;
        };
        let wanted = leading.step(now_us, me, &self.peers, &settings, &t);
        // Orders to this host itself are taken in at once, which may answer and so on;
        // what the next step wants is left to it.
        for action in wanted {
            match action {
                Action::Send { to, message } => self.send_or_take(to, message, actions),
                other => actions.push(other),
            }
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

fn level_of(change: &Change) -> Level {
    match change.is {
        HostState::Dead | HostState::StorageLost => Level::Error,
        HostState::Suspect | HostState::Isolated => Level::Warning,
        _ => Level::Info,
    }
}

fn words_of(name: &str, change: &Change) -> String {
    format!(
        "{name} is {} (was {}): {}",
        change.is.word(),
        change.was.word(),
        change.because
    )
}

#[cfg(test)]
mod tests;
