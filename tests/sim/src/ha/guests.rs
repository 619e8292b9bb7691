//! A guest's process: started by an order, built once its lease is held, stopped, let go.

use cluster_core::event::Event;
use cluster_core::messages::{LeaseSeen, StartOutcome};
use storage_core::lease;

use super::checks::Start;
use super::event::{Input, MS, SECOND};
use super::host::Vm;
use super::storage::LEAD;
use super::world::World;
use crate::harness::Trace;

impl World {
    /// An order was accepted: a process for the guest begins by reading its lease.
    pub fn start(&mut self, host: usize, guest: &str, from_epoch: u64) {
        let vm = Vm {
            ordered: true,
            ..Vm::new(self.new_claim(host, guest, from_epoch), self.serial)
        };
        self.hosts[host].vms.insert(guest.into(), vm);
        self.tally.starts += 1;
        self.note_start(&Start {
            host,
            guest: guest.into(),
        });
        self.look(host, guest);
    }

    pub fn stop(&mut self, host: usize, guest: &str) {
        let took = self.rng.between(100 * MS, 3 * SECOND);
        let Some(vm) = self.hosts[host].vms.get_mut(guest) else {
            return;
        };
        vm.stopping = true;
        self.lease_hears(took, host, guest, Input::Down);
    }

    /// A lease that nobody uses here is taken up and released.
    pub fn let_go(&mut self, host: usize, guest: &str, trace: &mut Trace) {
        let last = self.storage.last(guest).cloned();
        let holder = self.hosts[host].holder();
        let mine = last.as_ref().and_then(|last| last.holder.as_ref());
        let mine = mine.is_some_and(|mine| mine.same_boot(&holder));
        let (true, Some(last)) = (mine && !self.hosts[host].vms.contains_key(guest), last) else {
            return;
        };
        let vm = Vm {
            stopping: true,
            ..Vm::new(self.new_claim(host, guest, last.epoch), self.serial)
        };
        self.hosts[host].vms.insert(guest.into(), vm);
        if let Some(claim) = self.claim_mut(host, guest) {
            claim.begun = true;
        }
        let adopt = lease::Event::Adopt { last, died: true };
        self.lease_step(host, guest, adopt, trace);
        self.lease_step(host, guest, lease::Event::Release, trace);
    }

    pub fn may_run(&mut self, host: usize, subject: &str, trace: &mut Trace) {
        if subject == LEAD {
            let claim = self.claim_mut(host, LEAD);
            let seen = LeaseSeen::from(claim.and_then(|claim| claim.lease.record()));
            return self.tell(host, Event::LeaderLease(seen), trace);
        }
        let works = !self.broken.contains(&host);
        let took = self.rng.between(100 * MS, 400 * MS);
        let Some(vm) = self.hosts[host].vms.get_mut(subject) else {
            return;
        };
        if vm.built {
            vm.runs = !vm.stopping;
            self.check_runner(host, subject);
        } else {
            self.lease_hears(took, host, subject, Input::Built(works));
        }
        self.report(host, subject, trace);
    }

    pub fn built(&mut self, host: usize, guest: &str, works: bool, trace: &mut Trace) {
        let now_us = self.queue.now_us();
        let (clock_us, hold) = (self.hosts[host].clock(now_us), self.hosts[host].hold);
        let Some(vm) = self.hosts[host].vms.get_mut(guest) else {
            return;
        };
        if !works {
            let why = String::from("the machine could not be built");
            vm.stopping = true;
            self.answer(host, guest, StartOutcome::Failed { why }, trace);
            return self.lease_step(host, guest, lease::Event::Release, trace);
        }
        vm.built = true;
        vm.since_us = clock_us;
        vm.runs = vm.claim.lease.may_act(clock_us, hold) && !vm.stopping;
        let epoch = vm.claim.lease.record().map_or(0, |record| record.epoch);
        self.check_runner(host, guest);
        self.report(host, guest, trace);
        self.answer(host, guest, StartOutcome::Running { epoch }, trace);
    }

    pub fn report(&mut self, host: usize, guest: &str, trace: &mut Trace) {
        let clock_us = self.hosts[host].clock(self.queue.now_us());
        let now = self.hosts[host].vms.get(guest).map(|vm| vm.local(clock_us));
        if guest != LEAD {
            self.tell(
                host,
                Event::Local {
                    guest: guest.into(),
                    now,
                },
                trace,
            );
        }
    }

    pub fn answer(&mut self, host: usize, guest: &str, outcome: StartOutcome, trace: &mut Trace) {
        let vm = self.hosts[host].vms.get_mut(guest);
        if vm.is_some_and(|vm| core::mem::take(&mut vm.ordered)) {
            if !matches!(outcome, StartOutcome::Running { .. }) {
                self.tally.refused += 1;
            }
            self.tell(
                host,
                Event::StartDone {
                    guest: guest.into(),
                    outcome,
                },
                trace,
            );
        }
    }
}
