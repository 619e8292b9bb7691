//! What goes wrong, when, and that it heals in the end.

use std::rc::Rc;

use cluster_core::model::Desired;

use super::Kind;
use super::event::{Ev, MS, SECOND};
use super::storage::LEAD;
use super::world::World;
use crate::harness::Trace;

/// When the cluster is left to settle before anything goes wrong.
const WARM_UP_US: u64 = 15 * SECOND;
/// For how long things go wrong in a random history.
const TROUBLE_US: u64 = 60 * SECOND;
/// How long after the last fault everything must be well: retries and patience included.
const HEALED_US: u64 = 90 * SECOND;

/// Something that happens to the cluster.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The power of one that does not lead, or of the leader, is cut, for good.
    CutMeasured {
        leader: bool,
    },
    PowerOff(usize),
    PowerOn(usize),
    Freeze(usize, u64),
    Thaw(usize),
    /// This set of hosts and the rest cannot talk to each other.
    Partition(Vec<usize>),
    HealNetwork,
    Loss(u64),
    StorageCut(usize),
    StorageBack(usize),
    StorageDown,
    StorageUp,
    AgentDies(usize),
    AgentStarts(usize),
    BootsBreak(usize),
    BootsWork(usize),
    Maintenance(usize, bool),
    Power(String, Desired),
    /// Everything that is broken is repaired.
    HealAll,
}

/// Kept for replay: nothing but what the seed gives.
#[derive(Default)]
pub struct Plan {
    pub measured: bool,
}

impl World {
    pub fn lay_plan(&mut self) {
        match self.kind {
            Kind::Crash | Kind::LeaderCrash => {
                let at = WARM_UP_US + self.rng.below(2 * SECOND);
                let leader = self.kind == Kind::LeaderCrash;
                self.queue.at(at, Ev::Fault(Fault::CutMeasured { leader }));
                self.plan.measured = true;
                self.end_us = at + 40 * SECOND;
            }
            Kind::Calm => self.plan_calm(),
            Kind::Random => self.plan_random(),
        }
    }

    fn plan_calm(&mut self) {
        let mut at = WARM_UP_US;
        while at < WARM_UP_US + TROUBLE_US {
            let host = self.rng.below(self.hosts.len() as u64) as usize;
            let fault = if self.rng.chance(500) {
                Fault::Freeze(host, 400 * MS)
            } else {
                let lasts = self.rng.between(SECOND, 8 * SECOND);
                self.queue.at(at + lasts, Ev::Fault(Fault::Loss(0)));
                Fault::Loss(300)
            };
            self.queue.at(at, Ev::Fault(fault));
            at += self.rng.between(200 * MS, 3 * SECOND);
        }
        self.queue.at(at, Ev::Fault(Fault::HealAll));
        self.end_us = at + 10 * SECOND;
    }

    fn plan_random(&mut self) {
        let mut at = self.rng.below(WARM_UP_US);
        while at < WARM_UP_US + TROUBLE_US {
            let (fault, undo) = self.any_fault();
            let lasts = match self.rng.below(3) {
                0 => self.rng.between(100 * MS, 2 * SECOND),
                1 => self.rng.between(SECOND, 8 * SECOND),
                _ => self.rng.between(5 * SECOND, 40 * SECOND),
            };
            self.queue.at(at, Ev::Fault(fault));
            if let Some(undo) = undo {
                self.queue.at(at + lasts, Ev::Fault(undo));
            }
            at += self.rng.between(50 * MS, 8 * SECOND);
        }
        let healed = WARM_UP_US + TROUBLE_US + 10 * SECOND;
        self.queue.at(healed, Ev::Fault(Fault::HealAll));
        self.end_us = healed + HEALED_US;
    }

    fn any_fault(&mut self) -> (Fault, Option<Fault>) {
        let count = self.hosts.len() as u64;
        let host = self.rng.below(count) as usize;
        let guest = {
            let names: Vec<&String> = self.inventory.guests.keys().collect();
            names[self.rng.below(names.len() as u64) as usize].clone()
        };
        match self.rng.below(16) {
            0 | 1 => (Fault::PowerOff(host), Some(Fault::PowerOn(host))),
            2 => {
                let long = if self.rng.chance(500) {
                    12 * SECOND
                } else {
                    900 * MS
                };
                (Fault::Freeze(host, self.rng.between(100 * MS, long)), None)
            }
            3 | 4 => {
                let side: Vec<usize> = (0..count as usize)
                    .filter(|_| self.rng.chance(400))
                    .collect();
                (Fault::Partition(side), Some(Fault::HealNetwork))
            }
            5 => (Fault::Partition(vec![host]), Some(Fault::HealNetwork)),
            6 | 7 => (Fault::Loss(self.rng.between(50, 600)), Some(Fault::Loss(0))),
            8 => (Fault::StorageCut(host), Some(Fault::StorageBack(host))),
            9 => (Fault::StorageDown, Some(Fault::StorageUp)),
            10 | 11 => (Fault::AgentDies(host), Some(Fault::AgentStarts(host))),
            12 => (Fault::BootsBreak(host), Some(Fault::BootsWork(host))),
            13 => (
                Fault::Maintenance(host, true),
                Some(Fault::Maintenance(host, false)),
            ),
            _ => (
                Fault::Power(guest.clone(), Desired::Stopped),
                Some(Fault::Power(guest, Desired::Running)),
            ),
        }
    }

    pub fn strike(&mut self, fault: Fault, trace: &mut Trace) {
        let now_us = self.queue.now_us();
        trace.note(now_us, || format!("*** {fault:?}"));
        self.tally.faults += 1;
        match fault {
            Fault::CutMeasured { leader } => self.cut_measured(leader, trace),
            Fault::PowerOff(host) => self.power_off(host),
            Fault::PowerOn(host) => {
                if !self.hosts[host].up {
                    self.unwell(host, now_us);
                    self.boot(host);
                }
            }
            Fault::Freeze(host, for_us) => {
                // The heartbeat may fall behind by as much, and catch up.
                if for_us > 600 * MS {
                    self.unwell(host, now_us + for_us);
                }
                let until = now_us + for_us;
                let at = &mut self.hosts[host];
                at.frozen_until_us = at.frozen_until_us.max(until);
                self.queue.at(until, Ev::Fault(Fault::Thaw(host)));
            }
            Fault::Thaw(host) => self.check_all_runners(host),
            Fault::Partition(side) => self.partition(&side),
            Fault::HealNetwork => self.cut.clear(),
            Fault::Loss(permille) => self.loss_permille = permille,
            Fault::StorageCut(host) => {
                self.hosts[host].storage_cut = true;
            }
            Fault::StorageBack(host) => {
                self.hosts[host].storage_cut = false;
                self.unwell(host, now_us);
            }
            Fault::StorageDown => self.storage_down = true,
            Fault::StorageUp => {
                self.storage_down = false;
                for host in 0..self.hosts.len() {
                    self.unwell(host, now_us);
                }
            }
            Fault::AgentDies(host) => {
                self.hosts[host].agent = None;
                // A guest's process that dies now is missed by nobody until the agent is back.
                if self.rng.chance(300) {
                    self.hosts[host].vms.pop_first();
                }
                // Its guests' processes keep the heartbeat, if it has any.
                if self.hosts[host].vms.is_empty() {
                    self.unwell(host, now_us);
                }
            }
            Fault::AgentStarts(host) => {
                if self.hosts[host].up && self.hosts[host].agent.is_none() {
                    // The last of its guests may have ended meanwhile, and the heartbeat with it.
                    if !self.hosts[host].keeps() {
                        self.unwell(host, now_us);
                    }
                    self.start_agent(host);
                }
            }
            Fault::BootsBreak(host) => {
                self.broken.insert(host);
            }
            Fault::BootsWork(host) => {
                self.broken.remove(&host);
            }
            Fault::Maintenance(host, on) => {
                let mut inventory = (*self.inventory).clone();
                let name = self.hosts[host].name.clone();
                if let Some(entry) = inventory.hosts.get_mut(&name) {
                    entry.maintenance = on;
                }
                self.publish(inventory);
            }
            Fault::Power(guest, desired) => {
                let mut inventory = (*self.inventory).clone();
                if let Some(guest) = inventory.guests.get_mut(&guest) {
                    guest.desired = desired;
                    guest.revision += 1;
                }
                self.publish(inventory);
            }
            Fault::HealAll => self.heal_all(trace),
        }
    }

    fn unwell(&mut self, host: usize, until_us: u64) {
        // It may be frozen for longer than what has just ended.
        let at = &mut self.hosts[host];
        at.well_since_us = at.well_since_us.max(until_us);
    }

    fn power_off(&mut self, host: usize) {
        let now_us = self.queue.now_us();
        self.unwell(host, now_us);
        let at = &mut self.hosts[host];
        at.up = false;
        at.agent = None;
        at.agent_life += 1;
        at.vms.clear();
    }

    fn partition(&mut self, side: &[usize]) {
        for a in 0..self.hosts.len() {
            for b in 0..self.hosts.len() {
                if side.contains(&a) != side.contains(&b) {
                    self.cut.insert((a, b));
                }
            }
        }
        if self.rng.chance(200) {
            // Only one direction.
            self.cut.retain(|(a, _)| side.contains(a));
        }
    }

    fn cut_measured(&mut self, leader: bool, trace: &mut Trace) {
        let now_us = self.queue.now_us();
        let lead = self
            .storage
            .last(LEAD)
            .and_then(|last| last.holder.as_ref());
        let lead = lead.and_then(|holder| self.index(&holder.host));
        let victim = (0..self.hosts.len()).find(|host| (Some(*host) == lead) == leader);
        let Some(victim) = victim else { return };
        self.checks.cut_was_leader = leader;
        let guests = self.hosts[victim].vms.keys();
        self.checks.cut = guests.map(|guest| (guest.clone(), now_us)).collect();
        trace.note(now_us, || {
            format!("power of {} is cut", self.hosts[victim].name)
        });
        self.power_off(victim);
    }

    fn heal_all(&mut self, trace: &mut Trace) {
        let now_us = self.queue.now_us();
        self.cut.clear();
        self.broken.clear();
        (self.loss_permille, self.storage_down) = (0, false);
        for host in 0..self.hosts.len() {
            self.hosts[host].storage_cut = false;
            self.unwell(host, now_us);
            if !self.hosts[host].up {
                self.boot(host);
            } else if self.hosts[host].agent.is_none() {
                self.start_agent(host);
            }
        }
        let mut inventory = (*Rc::clone(&self.inventory)).clone();
        for entry in inventory.hosts.values_mut() {
            entry.maintenance = false;
        }
        self.publish(inventory);
        trace.note(now_us, || "everything is repaired".into());
    }
}
