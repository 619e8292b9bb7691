//! The only loop: whatever happens reaches the brain here, whatever it decides leaves here.

pub(crate) mod lead;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use cluster_core::brain::Brain;
use cluster_core::event::{Action, Event, Record};
use cluster_core::failover::NOBODY_HOLDS_IT;
use cluster_core::messages::{LeaseSeen, MoveOutcome, StartOutcome};
use cluster_core::model::{GuestId, HostId};
use shared_storage::StoreError;
use shared_storage::clock::boottime_us;
use shared_storage::lease::{HeldLease, Notice};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

use crate::guest_file::GuestFile;
use crate::guests::{Guests, Host, Observed};
use crate::history::History;
use crate::host_load;
use crate::inventory::Reading;
use crate::leaving::leave;
use crate::mail::{Letter, Outbox};
use crate::metrics::Metrics;
use crate::migration::departure::Departure;
use crate::migration::view::{Berth, MigrationView, Ordered};
use crate::picture::Picture;
use crate::systemd::Watchdog;
use lead::contend;

/// The brain is told the time so often.
const TICK: Duration = Duration::from_millis(50);
/// The picture for the API is drawn anew so often.
const PICTURE_EVERY: Duration = Duration::from_millis(250);
/// This host's load is measured so often.
const MEASURE_EVERY: Duration = Duration::from_secs(2);
/// One claim or release of the leader lease may take so long.
const STORAGE_LIMIT: Duration = Duration::from_secs(10);
/// Inputs that may wait for the driver.
pub const INPUTS_MAX: usize = 1024;
/// Why a guest moves that nobody but the operator moves.
const OPERATOR_WANTS_IT: &str = "the operator wants it there";
/// Events that may wait to be written down.
const RECORDS_MAX: usize = 4096;

/// What the driver takes in.
pub enum Input {
    /// For the brain, and when it was known to be true.
    Brain(u64, Event),
    /// The datastore says something new.
    Inventory(Box<Reading>),
    /// Mail of another member.
    Mail(Letter),
    /// News of a guest of this host.
    Guest(GuestId, Observed),
    /// The leader lease is ours.
    Leads(HeldLease),
    /// Somebody wants to know something of the brain, or have it do something.
    Ask(Question),
    /// The operator wants a guest elsewhere.
    Migrate {
        /// Which guest.
        guest: GuestId,
        /// Where to, if that matters.
        to: Option<HostId>,
        /// Takes what was ordered, or why nothing was.
        reply: oneshot::Sender<Result<Ordered, String>>,
    },
    /// Another host wants to send us a guest.
    Arrive {
        /// Which guest.
        guest: GuestId,
        /// Takes where it is waited for, or why it is not.
        reply: oneshot::Sender<Result<Berth, String>>,
    },
    /// How a migration out of this host goes.
    Migration(GuestId, MigrationView),
    /// For the history.
    Record(Record),
}

/// What is asked of the brain, with the time.
pub type Question = Box<dyn FnOnce(&mut Brain, u64) + Send>;

/// The loop and all it holds.
pub struct Driver {
    me: HostId,
    brain: Brain,
    host: Arc<Host>,
    guests: Guests,
    outbox: Outbox,
    records: mpsc::Sender<Record>,
    leadership: Option<HeldLease>,
    /// It is leaving the cluster.
    leaves: bool,
    /// A claim of the lead under way.
    contender: Option<JoinHandle<()>>,
    reading: Reading,
    observed: BTreeMap<GuestId, Observed>,
    migrations: BTreeMap<GuestId, MigrationView>,
    picture: watch::Sender<Picture>,
    drawn: Instant,
    measured: Instant,
    watchdog: Watchdog,
    metrics: Arc<Metrics>,
}

impl Driver {
    /// A driver for `host` that has not begun.
    pub fn new(
        host: Arc<Host>,
        outbox: Outbox,
        history: Arc<History>,
        picture: watch::Sender<Picture>,
        watchdog: Watchdog,
        metrics: Arc<Metrics>,
    ) -> Self {
        let local = host.keeper.host();
        let me = local.name().to_owned();
        Self {
            brain: Brain::new(me.clone(), local.incarnation()),
            me,
            guests: Guests::find(host.clone()),
            host,
            outbox,
            records: write_down(history),
            leadership: None,
            leaves: false,
            contender: None,
            reading: Reading::default(),
            observed: BTreeMap::new(),
            migrations: BTreeMap::new(),
            picture,
            drawn: Instant::now(),
            measured: Instant::now(),
            watchdog,
            metrics,
        }
    }

    /// Drive until nobody sends inputs any more.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => self.tick(),
                input = inputs.recv() => match input {
                    Some(input) => self.take_in(input),
                    None => return,
                },
            }
            if self.drawn.elapsed() >= PICTURE_EVERY {
                self.drawn = Instant::now();
                self.draw();
            }
            if self.measured.elapsed() >= MEASURE_EVERY {
                self.measured = Instant::now();
                if let Some(counted) = host_load::count() {
                    self.step(boottime_us(), Event::HostCounted(counted));
                }
            }
        }
    }

    fn tick(&mut self) {
        let now_us = boottime_us();
        self.step(now_us, Event::Hold(self.host.keeper.hold()));
        for event in self.sightings() {
            self.step(now_us, event);
        }
        let lost = self.leadership.as_ref().is_some_and(|lease| {
            lease
                .notices()
                .try_iter()
                .any(|notice| matches!(notice, Notice::Ended(_)))
        });
        if lost {
            self.leadership = None;
        }
        self.step(now_us, Event::Tick);
        self.watchdog.feed();
    }

    fn sightings(&self) -> Vec<Event> {
        let watcher = self
            .host
            .watcher
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let others = self.reading.hosts.keys().filter(|host| **host != self.me);
        others
            .filter_map(|host| {
                let sighting = watcher.sighting(host)?;
                Some(Event::Sighted {
                    host: host.clone(),
                    record: sighting.record,
                    silent_us: sighting.silent_us,
                })
            })
            .collect()
    }

    fn take_in(&mut self, input: Input) {
        let now_us = boottime_us();
        match input {
            Input::Brain(at_us, event) => self.step(at_us, event),
            Input::Inventory(reading) => self.take_inventory(now_us, *reading),
            Input::Mail(Letter { from, message }) => {
                self.step(now_us, Event::Received { from, message });
            }
            Input::Guest(guest, observed) => {
                let (now, counted) = (observed.local.clone(), observed.counted);
                if now.is_some() {
                    self.observed.insert(guest.clone(), observed);
                } else {
                    self.observed.remove(&guest);
                    self.guests.ended(&guest);
                }
                let name = guest.clone();
                self.step(now_us, Event::Local { guest, now });
                if let Some(counted) = counted {
                    let guest = name;
                    self.step(now_us, Event::Counted { guest, counted });
                }
            }
            Input::Leads(lease) => self.leadership = Some(lease),
            Input::Ask(question) => question(&mut self.brain, now_us),
            Input::Migrate { guest, to, reply } => self.order_migration(&guest, to.as_ref(), reply),
            Input::Arrive { guest, reply } => match self.brain.may_arrive(&guest) {
                Ok(()) => self.guests.arrive(&guest, reply),
                Err(why) => drop(reply.send(Err(why))),
            },
            Input::Migration(guest, view) => {
                self.migrations.insert(guest, view);
                self.draw();
            }
            Input::Record(record) => self.carry_out(Action::Record(record)),
        }
    }

    fn order_migration(
        &mut self,
        guest: &GuestId,
        to: Option<&HostId>,
        reply: oneshot::Sender<Result<Ordered, String>>,
    ) {
        let ordered = self.brain.migrate(guest, to, OPERATOR_WANTS_IT);
        let answer = ordered.map(|(one, number, actions)| {
            for action in actions {
                self.carry_out(action);
            }
            let (from, to) = (one.from, one.to);
            Ordered { from, to, number }
        });
        // Nobody waits for the answer any more when the operator has gone.
        let _ = reply.send(answer);
    }

    fn migrate(&mut self, guest: GuestId, to: HostId, number: u64) {
        let Some(address) = self.reading.hosts.get(&to).map(|host| host.address) else {
            let why = format!("{to} is no member any more");
            let outcome = MoveOutcome::Failed { why };
            return self.step(boottime_us(), Event::Migrated { guest, outcome });
        };
        let departure = Departure {
            host: self.host.clone(),
            guest: guest.clone(),
            to,
            address,
            number,
        };
        let driver = self.host.driver.clone();
        tokio::spawn(async move {
            let outcome = departure.run().await;
            let event = Event::Migrated { guest, outcome };
            // Fails only when the agent is ending.
            let _ = driver.send(Input::Brain(boottime_us(), event)).await;
        });
    }

    fn take_inventory(&mut self, now_us: u64, reading: Reading) {
        let addresses: BTreeMap<HostId, SocketAddr> = reading
            .hosts
            .iter()
            .map(|(name, host)| (name.clone(), host.address))
            .collect();
        self.outbox.set_members(&addresses);
        self.metrics.keep_peers(|peer| addresses.contains_key(peer));
        self.watch_hosts(&reading);
        *self
            .host
            .baseline
            .write()
            .unwrap_or_else(PoisonError::into_inner) = reading.common_features;
        let inventory = Box::new(reading.inventory.clone());
        self.reading = reading;
        self.step(now_us, Event::Inventory(inventory));
    }

    /// Watch the heartbeats of exactly the hosts there are.
    fn watch_hosts(&self, reading: &Reading) {
        if self.reading.hosts.keys().eq(reading.hosts.keys()) {
            return;
        }
        let mut watcher = self
            .host
            .watcher
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        for host in self
            .reading
            .hosts
            .keys()
            .filter(|host| !reading.hosts.contains_key(*host))
        {
            watcher.forget(host);
        }
        for host in reading.hosts.keys().filter(|host| **host != self.me) {
            if let Err(error) = watcher.watch(host) {
                warn!(host, %error, "cannot watch");
            }
        }
    }

    fn step(&mut self, now_us: u64, event: Event) {
        if let Event::Migrated { outcome, .. } = &event {
            self.metrics.migrated(outcome);
        }
        for action in self.brain.step(now_us, event) {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Send { to, message } => self.outbox.send(&to, message),
            Action::Publish(note) => self.host.keeper.set_flags(note.to_flags()),
            Action::ContendForLeader {
                from_epoch,
                because,
            } => {
                // The brain asks again while a claim waits for its grounds.
                if self.contender.as_ref().is_none_or(JoinHandle::is_finished) {
                    info!(from_epoch, because, "contends for the lead");
                    let host = self.host.clone();
                    let contend = move || contend(&host, from_epoch);
                    self.contender = Some(tokio::task::spawn_blocking(contend));
                }
            }
            Action::ReleaseLeader { because } => {
                info!(because, "releases the lead");
                let (host, held) = (self.host.clone(), self.leadership.take());
                tokio::task::spawn_blocking(move || lead::release(&host, held));
            }
            Action::ReadLeases { guests } => {
                let host = self.host.clone();
                tokio::task::spawn_blocking(move || read_leases(&host, guests));
            }
            Action::Start {
                guest,
                from_epoch,
                because,
            } => {
                self.metrics.starts(!because.starts_with(NOBODY_HOLDS_IT));
                if !self.guests.start(&guest, from_epoch, because) {
                    let why = "it is busy with the guest's end here".to_owned();
                    let outcome = StartOutcome::Refused { why };
                    self.step(boottime_us(), Event::StartDone { guest, outcome });
                }
            }
            Action::Migrate {
                guest,
                to,
                number,
                because,
            } => {
                info!(guest, to, because, "migrates");
                self.metrics.migrates(because == OPERATOR_WANTS_IT);
                self.migrate(guest, to, number);
            }
            Action::NotMigrated(answer) => {
                let view = MigrationView::refused(&answer);
                self.migrations.insert(answer.guest, view);
                self.draw();
            }
            Action::Release { guest, because } => {
                info!(guest, because, "lets go");
                self.guests.release(&guest);
            }
            Action::Leave => self.leave(),
            Action::Stop {
                guest,
                how,
                because,
            } => {
                info!(guest, because, "stops");
                self.guests.stop(&guest, how);
            }
            Action::Record(record) => {
                info!(about = record.about, "{}", record.text);
                if self.records.try_send(record).is_err() {
                    warn!("the history does not keep up; an event is lost");
                }
            }
        }
    }

    fn leave(&mut self) {
        if !self.guests.is_empty() || self.leaves {
            return;
        }
        self.leaves = true;
        let leads = self.brain.leader() == Some(&self.me);
        let held = self.leadership.take();
        leave(self.host.clone(), leads.then_some(held));
    }

    fn draw(&self) {
        let picture = Picture::draw(
            &self.me,
            &self.brain,
            &self.reading,
            &self.observed,
            &self.migrations,
        );
        self.picture.send_replace(picture);
    }
}

fn read_leases(host: &Host, guests: Vec<GuestId>) {
    for guest in guests {
        let sent_us = boottime_us();
        match read_lease(host, &guest) {
            Ok(events) => {
                for event in events {
                    let input = Input::Brain(sent_us, event);
                    if host.driver.blocking_send(input).is_err() {
                        return;
                    }
                }
            }
            Err(error) => warn!(guest, %error, "cannot read its lease"),
        }
    }
}

/// The lease, and what the operator wants if it is free.
fn read_lease(host: &Host, guest: &GuestId) -> Result<Vec<Event>, StoreError> {
    let dir = host.store.guest(guest)?;
    let seen: LeaseSeen = dir.lease().last()?.as_ref().into();
    let mut events = Vec::new();
    if seen.holder.is_none() {
        let file = dir.spec::<GuestFile>()?;
        events.push(Event::Wanted {
            guest: guest.clone(),
            desired: file.spec.desired,
            revision: file.revision,
        });
    }
    let guest = guest.clone();
    events.push(Event::GuestLease { guest, seen });
    Ok(events)
}

/// Writes records to the history in their order, holding up nobody.
fn write_down(history: Arc<History>) -> mpsc::Sender<Record> {
    let (sender, mut records) = mpsc::channel::<Record>(RECORDS_MAX);
    tokio::task::spawn_blocking(move || {
        while let Some(record) = records.blocking_recv() {
            let level = format!("{:?}", record.level).to_lowercase();
            if let Err(failed) = history.record(&record.about, &level, &record.text) {
                error!(%failed, about = record.about, text = record.text, "not in the history");
            }
        }
    });
    sender
}
