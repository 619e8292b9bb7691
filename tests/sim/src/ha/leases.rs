//! A lease machine and the world around it: what it is told, and what it wants done.

use cluster_core::event::Event;
use cluster_core::messages::{LeaseSeen, StartOutcome};
use storage_core::lease::{self, Outcome, Refusal};
use storage_core::record::{Grant, LeaseRecord};

use super::event::{Ev, Input, MS};
use super::storage::LEAD;
use super::world::World;
use crate::harness::Trace;

impl World {
    pub fn lease_input(
        &mut self,
        host: usize,
        subject: &str,
        serial: u64,
        input: Input,
        trace: &mut Trace,
    ) {
        let at = &mut self.hosts[host];
        let known = subject == LEAD || at.vms.get(subject).is_some_and(|vm| vm.serial == serial);
        if !known {
            return;
        }
        match input {
            Input::Seen(last) => {
                let clock_us = at.clock(self.queue.now_us());
                if let Some(claim) = self.claim_mut(host, subject) {
                    claim.seen = Some((last, clock_us));
                }
                self.try_claim(host, subject, trace);
            }
            Input::NotRead => {
                let why = "its lease cannot be read".to_owned();
                self.answer(host, subject, StartOutcome::Failed { why }, trace);
                self.forget_claim(host, subject);
            }
            Input::Event(event) => self.lease_step(host, subject, event, trace),
            Input::Built(works) => self.built(host, subject, works, trace),
            // A machine can be shut down once it answers.
            Input::Down if at.vms.get(subject).is_some_and(|vm| vm.ordered) => {
                self.lease_hears(100 * MS, host, subject, Input::Down);
            }
            Input::Down => {
                if let Some(vm) = at.vms.get_mut(subject) {
                    (vm.runs, vm.stopping) = (false, true);
                }
                self.lease_step(host, subject, lease::Event::Release, trace);
            }
        }
    }

    pub fn tick_leases(&mut self, host: usize, trace: &mut Trace) {
        let mut subjects: Vec<String> = self.hosts[host].vms.keys().cloned().collect();
        subjects.push(LEAD.into());
        for subject in subjects {
            self.lease_step(host, &subject, lease::Event::Tick, trace);
        }
    }

    pub fn lease_step(
        &mut self,
        host: usize,
        subject: &str,
        event: lease::Event,
        trace: &mut Trace,
    ) {
        let now_us = self.queue.now_us();
        let (clock_us, hold) = (self.hosts[host].clock(now_us), self.hosts[host].hold);
        let Some(claim) = self.claim_mut(host, subject) else {
            return;
        };
        let actions = claim.lease.step(clock_us, hold, event);
        for action in actions {
            self.lease_action(host, subject, action, trace);
        }
    }

    pub fn lease_action(
        &mut self,
        host: usize,
        subject: &str,
        action: lease::Action,
        trace: &mut Trace,
    ) {
        let now_us = self.queue.now_us();
        let name = self.hosts[host].name.clone();
        trace.note(now_us, || format!("{name}: lease {subject}: {action:?}"));
        match action {
            lease::Action::Create(record) => {
                let outcome = self.create(host, &record);
                self.lease_answer(host, subject, lease::Event::Created { record, outcome });
            }
            lease::Action::Settle(record) => {
                let reaches = self.reaches_storage(host);
                let outcome = if reaches {
                    self.storage.settle(&record)
                } else {
                    Outcome::Unknown
                };
                self.lease_answer(host, subject, lease::Event::Created { record, outcome });
            }
            lease::Action::Look => {
                let last = self.storage.last(subject).cloned();
                if self.reaches_storage(host) {
                    self.lease_answer(host, subject, lease::Event::Looked { last });
                }
            }
            lease::Action::Fence { epoch } => {
                let done = self.reaches_storage(host);
                self.lease_answer(host, subject, lease::Event::Fenced { epoch, done });
            }
            lease::Action::Run => self.may_run(host, subject, trace),
            lease::Action::Pause => {
                if let Some(vm) = self.hosts[host].vms.get_mut(subject) {
                    vm.runs = false;
                }
                self.report(host, subject, trace);
            }
            lease::Action::Forget { .. } => {}
            lease::Action::Refused(refusal) => self.refused(host, subject, refusal, trace),
            lease::Action::End(_) => self.ended(host, subject, trace),
        }
    }

    pub fn create(&mut self, host: usize, record: &LeaseRecord) -> Outcome {
        let reaches = self.reaches_storage(host);
        if !reaches && self.rng.chance(500) {
            return Outcome::Unknown;
        }
        let (outcome, before) = self.storage.create(record);
        if outcome == Outcome::Won && record.grant == Grant::TakenOver {
            self.tally.takeovers += u64::from(record.subject != LEAD);
            self.check_takeover(record, before.as_ref());
        }
        if record.subject == LEAD && outcome == Outcome::Won && record.holder.is_some() {
            self.tally.leaders += 1;
        }
        if reaches { outcome } else { Outcome::Unknown }
    }

    pub fn lease_answer(&mut self, host: usize, subject: &str, event: lease::Event) {
        let took = self.latency() + self.latency();
        self.lease_hears(took, host, subject, Input::Event(event));
    }

    /// The machine's process, if it still lives by then, learns something.
    pub fn lease_hears(&mut self, after_us: u64, host: usize, subject: &str, input: Input) {
        let at = &self.hosts[host];
        let event = Ev::Lease {
            host,
            life: at.life,
            subject: subject.into(),
            serial: at.vms.get(subject).map_or(0, |vm| vm.serial),
            input,
        };
        self.queue.after(after_us, event);
    }

    pub fn refused(&mut self, host: usize, subject: &str, refusal: Refusal, trace: &mut Trace) {
        let claim = self.claim_mut(host, subject);
        let outside = claim.is_some_and(|claim| claim.lease.record().is_none());
        match refusal {
            Refusal::Outrun { last } => self.lost_race(host, subject, Some(&last), trace),
            other if outside => {
                let why = other.to_string();
                self.answer(host, subject, StartOutcome::Refused { why }, trace);
                self.forget_claim(host, subject);
                self.report(host, subject, trace);
            }
            // A release that could not be written is tried again until it is.
            _ if self.hosts[host]
                .vms
                .get(subject)
                .is_some_and(|vm| vm.stopping) =>
            {
                self.lease_hears(500 * MS, host, subject, Input::Down);
            }
            _ => {}
        }
    }

    pub fn ended(&mut self, host: usize, subject: &str, trace: &mut Trace) {
        self.forget_claim(host, subject);
        if subject == LEAD {
            let seen = LeaseSeen::from(self.storage.last(LEAD));
            return self.tell(host, Event::LeaderLease(seen), trace);
        }
        self.report(host, subject, trace);
    }

    pub fn release_lead(&mut self, host: usize, trace: &mut Trace) {
        self.lease_step(host, LEAD, lease::Event::Release, trace);
    }
}
