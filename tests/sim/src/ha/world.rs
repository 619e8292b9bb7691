//! The world: events in order of true time, and what carries them out.

use std::collections::BTreeSet;
use std::rc::Rc;

use cluster_core::event::{Action, Event};
use cluster_core::messages::{Message, MoveOutcome};
use cluster_core::settings::Inventory;
use storage_core::timing::Timing;

use super::checks::Checks;
use super::event::{Ev, MS};
use super::faults::Plan;
use super::host::Host;
use super::inventory::inventory;
use super::storage::Storage;
use super::{Args, Kind, Tally};
use crate::harness::{Trace, Violation};
use crate::queue::Queue;
use crate::rng::Rng;

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
        if let Some(host) = event.acting() {
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
