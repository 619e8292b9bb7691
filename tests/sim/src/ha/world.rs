//! The world: events in order of true time, and what carries them out.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use cluster_core::event::{Action, Event};
use cluster_core::messages::{Message, MoveOutcome};
use cluster_core::model::{Guest, Resources, Rule};
use cluster_core::settings::{HostEntry, Inventory, IsolationResponse};
use storage_core::observer::Sight;
use storage_core::record::{HeartbeatRecord, LeaseRecord};
use storage_core::timing::Timing;

use super::checks::Checks;
use super::faults::{Fault, Plan};
use super::host::{Agent, Host};
use super::storage::{LEAD, Storage};
use super::{Args, Kind, Tally};
use crate::harness::{Trace, Violation};
use crate::queue::Queue;
use crate::rng::Rng;

pub const MS: u64 = 1000;
pub const SECOND: u64 = 1_000_000;
/// How often processes look at the time.
const TICK_US: u64 = 50 * MS;

/// What happens. Whatever happens inside a host names the boot it belongs to.
pub enum Ev {
    /// The heartbeat is due.
    BeatTurn {
        host: usize,
        life: u64,
    },
    BeatLands {
        host: usize,
        record: HeartbeatRecord,
    },
    BeatAcked {
        host: usize,
        life: u64,
        sent_us: u64,
    },
    /// Others' heartbeats and the leader lease are to be read.
    ReadTurn {
        host: usize,
        agent: u64,
    },
    Read {
        host: usize,
        agent: u64,
        issued_us: u64,
        read: Option<Reading>,
    },
    Tick {
        host: usize,
        life: u64,
    },
    Deliver {
        to: usize,
        from: usize,
        message: Message,
    },
    News {
        host: usize,
        agent: u64,
        inventory: Rc<Inventory>,
    },
    LeaseRead {
        host: usize,
        agent: u64,
        guest: String,
        last: Option<LeaseRecord>,
    },
    /// For one of the lease machines of the host.
    Lease {
        host: usize,
        life: u64,
        subject: String,
        serial: u64,
        input: Input,
    },
    Fault(Fault),
}

/// What a lease machine's process learns.
pub enum Input {
    /// The lease as it is, before it is claimed.
    Seen(Option<LeaseRecord>),
    Event(storage_core::lease::Event),
    /// The machine is built, or could not be.
    Built(bool),
    /// The guest has shut down.
    Down,
}

/// What one reading of the datastore gave.
pub struct Reading {
    pub beats: BTreeMap<usize, Rc<Sight>>,
    pub lead: Option<LeaseRecord>,
}

pub struct World {
    pub queue: Queue<Ev>,
    pub rng: Rng,
    pub hosts: Vec<Host>,
    pub storage: Storage,
    pub inventory: Rc<Inventory>,
    pub timing: Timing,
    pub fencing: bool,
    pub kind: Kind,
    pub storage_down: bool,
    pub loss_permille: u64,
    /// Pairs that cannot talk, in this direction.
    pub cut: BTreeSet<(usize, usize)>,
    /// Guests whose start fails on this host.
    pub broken: BTreeSet<usize>,
    pub checks: Checks,
    pub tally: Tally,
    pub serial: u64,
    pub end_us: u64,
    pub plan: Plan,
}

impl World {
    pub fn new(args: &Args, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let kind = args.kind.unwrap_or_else(|| Kind::of(seed));
        let count = args.hosts.unwrap_or_else(|| rng.between(2, 6)).max(1);
        let fencing = args.fencing.unwrap_or((seed / 4).is_multiple_of(2));
        let inventory = inventory(&mut rng, count, args.guests, fencing, kind);
        let hosts = inventory.hosts.keys().map(|name| {
            let drift_ppm = rng.between(0, 1000).cast_signed() - 500;
            Host::new(name.clone(), drift_ppm)
        });
        let hosts: Vec<Host> = hosts.collect();
        let mut world = Self {
            queue: Queue::default(),
            hosts,
            storage: Storage::default(),
            timing: inventory.lease,
            inventory: Rc::new(inventory),
            fencing,
            kind,
            storage_down: false,
            loss_permille: 0,
            cut: BTreeSet::new(),
            broken: BTreeSet::new(),
            checks: Checks::default(),
            tally: Tally::default(),
            serial: 0,
            end_us: 0,
            plan: Plan::default(),
            rng,
        };
        world.lay_plan();
        world
    }

    pub fn run(mut self, trace: &mut Trace) -> Result<Tally, Violation> {
        for host in 0..self.hosts.len() {
            self.boot(host);
        }
        while let Some((now_us, event)) = self.queue.pop() {
            if now_us > self.end_us {
                break;
            }
            self.tally.events += 1;
            self.happen(now_us, event, trace);
            if let Some(violation) = self.checks.broken.take() {
                return Err(violation);
            }
        }
        self.check_end()?;
        Ok(self.tally)
    }

    /// A time an access to storage takes, one way.
    pub fn latency(&mut self) -> u64 {
        match self.rng.below(100) {
            0 => self.rng.between(20 * MS, 150 * MS),
            _ => self.rng.between(300, 8 * MS),
        }
    }

    pub fn reaches_storage(&self, host: usize) -> bool {
        !self.storage_down && !self.hosts[host].storage_cut
    }

    fn happen(&mut self, now_us: u64, event: Ev, trace: &mut Trace) {
        if let Some(host) = acting(&event) {
            let thaw_us = self.hosts[host].frozen_until_us;
            if now_us < thaw_us {
                // Its turn comes when the host thaws, in the same order.
                return self.queue.at(thaw_us, event);
            }
        }
        match event {
            Ev::BeatTurn { host, life } => self.beat_turn(host, life),
            Ev::BeatLands { host, record } => self.storage.write_beat(host, record),
            Ev::BeatAcked {
                host,
                life,
                sent_us,
            } => self.beat_acked(host, life, sent_us, trace),
            Ev::ReadTurn { host, agent } => self.read_turn(host, agent),
            Ev::Read {
                host,
                agent,
                issued_us,
                read,
            } => {
                self.read(host, agent, issued_us, read, trace);
            }
            Ev::Tick { host, life } => self.tick(host, life, trace),
            Ev::Deliver { to, from, message } => self.deliver(to, from, message, trace),
            Ev::News {
                host,
                agent,
                inventory,
            } => {
                if self.hosts[host].agent_life == agent {
                    let event = Event::Inventory(Box::new((*inventory).clone()));
                    self.tell(host, event, trace);
                }
            }
            Ev::LeaseRead {
                host,
                agent,
                guest,
                last,
            } => {
                if self.hosts[host].agent_life == agent {
                    let seen = last.as_ref().into();
                    self.tell(host, Event::GuestLease { guest, seen }, trace);
                }
            }
            Ev::Lease {
                host,
                life,
                subject,
                serial,
                input,
            } => {
                if self.alive(host, life) {
                    self.lease_input(host, &subject, serial, input, trace);
                }
            }
            Ev::Fault(fault) => self.strike(fault, trace),
        }
    }

    pub fn alive(&self, host: usize, life: u64) -> bool {
        self.hosts[host].up && self.hosts[host].life == life
    }

    /// Tells the brain, if there is one, and carries out what it wants.
    pub fn tell(&mut self, host: usize, event: Event, trace: &mut Trace) {
        let now_us = self.queue.now_us();
        let at = &mut self.hosts[host];
        let clock_us = at.clock(now_us);
        let Some(agent) = at.agent.as_mut().filter(|_| at.up) else {
            return;
        };
        let actions = agent.brain.step(clock_us, event);
        for action in actions {
            self.carry_out(host, action, trace);
        }
    }

    fn deliver(&mut self, to: usize, from: usize, message: Message, trace: &mut Trace) {
        if self.hosts[to].up {
            let from = self.hosts[from].name.clone();
            self.tell(to, Event::Received { from, message }, trace);
        }
    }

    fn beat_turn(&mut self, host: usize, life: u64) {
        if !self.alive(host, life) {
            return;
        }
        let now_us = self.queue.now_us();
        self.queue
            .after(self.timing.interval_us(), Ev::BeatTurn { host, life });
        if !self.hosts[host].keeps() {
            return;
        }
        let (out, back) = (self.latency(), self.latency());
        let at = &mut self.hosts[host];
        at.counter += 1;
        let sent_us = at.clock(now_us);
        let record = HeartbeatRecord {
            host: at.name.clone(),
            incarnation: at.incarnation(),
            counter: at.counter,
            sent_us,
            term: at.hold.term(),
            flags: at.flags,
            writer_pid: 1,
        };
        if self.reaches_storage(host) {
            self.queue.after(out, Ev::BeatLands { host, record });
            self.queue.after(
                out + back,
                Ev::BeatAcked {
                    host,
                    life,
                    sent_us,
                },
            );
        } else if self.rng.chance(200) {
            // It got through before the path broke, or hangs somewhere for a while.
            let late = self.rng.below(self.timing.in_flight_us());
            self.queue.after(late, Ev::BeatLands { host, record });
        }
    }

    fn beat_acked(&mut self, host: usize, life: u64, sent_us: u64, trace: &mut Trace) {
        if !self.alive(host, life) {
            return;
        }
        let clock_us = self.hosts[host].clock(self.queue.now_us());
        let hold = self.hosts[host]
            .hold
            .after_ack(sent_us, clock_us, self.timing.reach_us());
        self.hosts[host].hold = hold;
        self.tell(host, Event::Hold(hold), trace);
    }

    fn read_turn(&mut self, host: usize, agent: u64) {
        if self.hosts[host].agent_life != agent || !self.hosts[host].up {
            return;
        }
        let interval_us = self.timing.interval_us();
        self.queue.after(interval_us, Ev::ReadTurn { host, agent });
        let issued_us = self.hosts[host].clock(self.queue.now_us());
        let (out, back) = (self.latency(), self.latency());
        let read = self.reaches_storage(host).then(|| Reading {
            beats: self.storage.beats().clone(),
            lead: self.storage.last(LEAD).cloned(),
        });
        let took = if read.is_some() {
            out + back
        } else {
            interval_us
        };
        self.queue.after(
            took,
            Ev::Read {
                host,
                agent,
                issued_us,
                read,
            },
        );
    }

    fn tick(&mut self, host: usize, life: u64, trace: &mut Trace) {
        if !self.alive(host, life) {
            return;
        }
        self.queue.after(TICK_US, Ev::Tick { host, life });
        self.tell(host, Event::Tick, trace);
        self.tick_leases(host, trace);
        self.check_lead(trace);
    }

    /// Power on.
    pub fn boot(&mut self, host: usize) {
        let late_us = self.rng.below(TICK_US);
        let at = &mut self.hosts[host];
        at.life += 1;
        at.up = true;
        at.frozen_until_us = 0;
        at.hold = storage_core::hold::Hold::expired(0);
        at.vms.clear();
        at.flags = 0;
        let life = at.life;
        self.queue.after(late_us, Ev::BeatTurn { host, life });
        self.queue.after(late_us, Ev::Tick { host, life });
        self.start_agent(host);
    }

    pub fn start_agent(&mut self, host: usize) {
        let now_us = self.queue.now_us();
        let at = &mut self.hosts[host];
        at.agent_life += 1;
        let agent = at.agent_life;
        let mut brain = cluster_core::brain::Brain::new(at.name.clone(), at.incarnation());
        // What the shell finds running it tells before anything else.
        let clock_us = at.clock(now_us);
        for (guest, vm) in &at.vms {
            let event = Event::Local {
                guest: guest.clone(),
                now: Some(vm.local(clock_us)),
            };
            brain.step(clock_us, event);
        }
        at.agent = Some(Agent {
            brain,
            observers: BTreeMap::new(),
            lead: None,
        });
        let (news, read) = (self.latency(), self.latency());
        let inventory = self.inventory.clone();
        self.queue.after(
            news,
            Ev::News {
                host,
                agent,
                inventory,
            },
        );
        self.queue.after(news + read, Ev::ReadTurn { host, agent });
    }

    /// The inventory on the datastore changed: agents find out one by one.
    pub fn publish(&mut self, inventory: Inventory) {
        self.inventory = Rc::new(inventory);
        for host in 0..self.hosts.len() {
            let late = self.rng.between(10 * MS, 500 * MS);
            let (agent, inventory) = (self.hosts[host].agent_life, self.inventory.clone());
            self.queue.after(
                late,
                Ev::News {
                    host,
                    agent,
                    inventory,
                },
            );
        }
    }

    pub fn send(&mut self, from: usize, to: usize, message: Message) {
        let lost = self.cut.contains(&(from, to)) || self.rng.chance(self.loss_permille);
        if !lost {
            let took = self.rng.between(100, 3 * MS);
            self.queue.after(took, Ev::Deliver { to, from, message });
        }
    }

    pub fn index(&self, name: &str) -> Option<usize> {
        self.hosts.iter().position(|host| host.name == name)
    }

    fn carry_out(&mut self, host: usize, action: Action, trace: &mut Trace) {
        let now_us = self.queue.now_us();
        let name = self.hosts[host].name.clone();
        if !matches!(
            &action,
            Action::Send {
                message: Message::Beat(_) | Message::Report(_),
                ..
            } | Action::Publish(_)
        ) {
            trace.note(now_us, || format!("{name}: {action:?}"));
        }
        match action {
            Action::Send { to, message } => {
                if let Some(to) = self.index(&to) {
                    self.send(host, to, message);
                }
            }
            Action::Publish(note) => self.hosts[host].flags = note.to_flags(),
            Action::ContendForLeader { from_epoch, .. } => self.contend(host, from_epoch),
            Action::ReleaseLeader { .. } => self.release_lead(host, trace),
            Action::ReadLeases { guests } => self.read_leases(host, guests),
            Action::Start {
                guest, from_epoch, ..
            } => self.start(host, &guest, from_epoch),
            Action::Stop { guest, .. } => self.stop(host, &guest),
            Action::Migrate { guest, .. } => {
                let why = "the hosts of this world do not migrate".into();
                let outcome = MoveOutcome::Failed { why };
                self.tell(host, Event::Migrated { guest, outcome }, trace);
            }
            Action::Record(_) | Action::NotMigrated(_) | Action::Leave => {}
            Action::Release { guest, .. } => self.let_go(host, &guest, trace),
        }
    }
}

fn acting(event: &Ev) -> Option<usize> {
    match event {
        Ev::BeatTurn { host, .. }
        | Ev::BeatAcked { host, .. }
        | Ev::ReadTurn { host, .. }
        | Ev::Read { host, .. }
        | Ev::Tick { host, .. }
        | Ev::News { host, .. }
        | Ev::LeaseRead { host, .. }
        | Ev::Lease { host, .. } => Some(*host),
        Ev::Deliver { to, .. } => Some(*to),
        Ev::BeatLands { .. } | Ev::Fault(_) => None,
    }
}

fn inventory(rng: &mut Rng, hosts: u64, per_host: u64, fencing: bool, kind: Kind) -> Inventory {
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
                guest
                    .after
                    .insert(other, cluster_core::model::Readiness::Running);
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
