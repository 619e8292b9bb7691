//! A host's life: power on, its agent, its heartbeats, its looks at the others.

use std::collections::BTreeMap;
use std::rc::Rc;

use cluster_core::brain::Brain;
use cluster_core::event::Event;
use cluster_core::settings::Inventory;
use storage_core::hold::Hold;
use storage_core::record::HeartbeatRecord;

use super::event::{Ev, MS, Reading};
use super::host::Agent;
use super::storage::LEAD;
use super::world::World;
use crate::harness::Trace;

/// How often processes look at the time.
const TICK_US: u64 = 50 * MS;

impl World {
    /// Power on.
    pub fn boot(&mut self, host: usize) {
        let late_us = self.rng.below(TICK_US);
        let at = &mut self.hosts[host];
        at.life += 1;
        at.up = true;
        at.frozen_until_us = 0;
        at.hold = Hold::expired(0);
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
        let mut brain = Brain::new(at.name.clone(), at.incarnation());
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
        self.read_inventory(host, news);
        self.queue.after(news + read, Ev::ReadTurn { host, agent });
    }

    /// The inventory on the datastore changed: agents find out one by one.
    pub fn publish(&mut self, inventory: Inventory) {
        self.inventory = Rc::new(inventory);
        for host in 0..self.hosts.len() {
            let late_us = self.rng.between(10 * MS, 500 * MS);
            self.read_inventory(host, late_us);
        }
    }

    /// What a host's agent knows `late_us` from now, or once it knows what it read before: the
    /// agent has one reader.
    fn read_inventory(&mut self, host: usize, late_us: u64) {
        let inventory = self.inventory.clone();
        let at = &mut self.hosts[host];
        at.news_us = at.news_us.max(self.queue.now_us() + late_us);
        let news = Ev::News {
            host,
            agent: at.agent_life,
            inventory,
        };
        self.queue.at(at.news_us, news);
    }

    pub fn beat_turn(&mut self, host: usize, life: u64) {
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

    pub fn beat_acked(&mut self, host: usize, life: u64, sent_us: u64, trace: &mut Trace) {
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

    pub fn read_turn(&mut self, host: usize, agent: u64) {
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

    pub fn tick(&mut self, host: usize, life: u64, trace: &mut Trace) {
        if !self.alive(host, life) {
            return;
        }
        self.queue.after(TICK_US, Ev::Tick { host, life });
        self.tell(host, Event::Tick, trace);
        self.tick_leases(host, trace);
        self.check_lead(trace);
    }
}
