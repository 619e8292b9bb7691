//! What the agent's shell and the guests' processes do: read, claim, build, stop.

use cluster_core::event::Event;
use cluster_core::messages::{LeaseSeen, StartOutcome};
use storage_core::lease::{self, Grounds, Held, Outcome, Refusal};
use storage_core::record::{Grant, LeaseRecord};

use super::checks::Start;
use super::host::Vm;
use super::storage::LEAD;
use super::world::{Ev, Input, MS, Reading, SECOND, World};
use crate::harness::Trace;

/// How long a process waits for a lease's holder to be certainly gone.
const CLAIM_PATIENCE_US: u64 = 3 * SECOND;

impl World {
    pub fn read(
        &mut self,
        host: usize,
        agent: u64,
        issued_us: u64,
        read: Option<Reading>,
        trace: &mut Trace,
    ) {
        let now_us = self.queue.now_us();
        let at = &mut self.hosts[host];
        if at.agent_life != agent || !at.up {
            return;
        }
        let clock_us = at.clock(now_us);
        let own_term = at.hold.is_live(clock_us).then(|| at.hold.term());
        let Some(agent) = at.agent.as_mut() else {
            return;
        };
        let Some(read) = read else {
            for observer in agent.observers.values_mut() {
                observer.failed();
            }
            return;
        };
        let mut sightings = Vec::new();
        for (other, sight) in read.beats.iter().filter(|(other, _)| **other != host) {
            let observer = agent.observers.entry(*other).or_default();
            observer.read(issued_us, clock_us, sight, own_term, &self.timing);
            let Some(record) = observer.record().cloned() else {
                continue;
            };
            sightings.push(Event::Sighted {
                host: record.host.clone(),
                record: Some(record),
                silent_us: observer.silent_us(),
            });
        }
        for sighting in sightings {
            self.tell(host, sighting, trace);
        }
        self.tell_lead(host, read.lead.as_ref(), trace);
        self.try_claims(host, trace);
    }

    /// The leader lease was read; one that names us and that no process keeps is adopted.
    fn tell_lead(&mut self, host: usize, last: Option<&LeaseRecord>, trace: &mut Trace) {
        self.tell(host, Event::LeaderLease(last.into()), trace);
        let at = &self.hosts[host];
        let mine =
            last.is_some_and(|l| l.holder.as_ref().is_some_and(|h| h.same_boot(&at.holder())));
        let keeps = at.agent.as_ref().is_some_and(|agent| agent.lead.is_some());
        if let (true, false, Some(last)) = (mine, keeps, last) {
            let claim = self.new_claim(host, LEAD, last.epoch);
            if let Some(agent) = self.hosts[host].agent.as_mut() {
                agent.lead = Some(claim);
            }
            let event = lease::Event::Adopt {
                last: last.clone(),
                died: false,
            };
            self.lease_step(host, LEAD, event, trace);
        }
    }

    fn new_claim(&mut self, host: usize, subject: &str, from_epoch: u64) -> super::host::Claim {
        self.serial += 1;
        let give_up_us = self.queue.now_us() + CLAIM_PATIENCE_US;
        self.hosts[host].claim(subject, self.serial, self.timing, from_epoch, give_up_us)
    }

    pub fn contend(&mut self, host: usize, from_epoch: u64) {
        let busy = self.hosts[host]
            .agent
            .as_ref()
            .is_none_or(|agent| agent.lead.is_some());
        if busy {
            return;
        }
        let claim = self.new_claim(host, LEAD, from_epoch);
        if let Some(agent) = self.hosts[host].agent.as_mut() {
            agent.lead = Some(claim);
        }
        self.look(host, LEAD, 0);
    }

    pub fn release_lead(&mut self, host: usize, trace: &mut Trace) {
        self.lease_step(host, LEAD, lease::Event::Release, trace);
    }

    pub fn read_leases(&mut self, host: usize, guests: Vec<String>) {
        let agent = self.hosts[host].agent_life;
        for guest in guests {
            if self.reaches_storage(host) {
                let took = self.latency() + self.latency();
                let last = self.storage.last(&guest).cloned();
                self.queue.after(
                    took,
                    Ev::LeaseRead {
                        host,
                        agent,
                        guest,
                        last,
                    },
                );
            }
        }
    }

    /// An order was accepted: a process for the guest begins by reading its lease.
    pub fn start(&mut self, host: usize, guest: &str, from_epoch: u64) {
        let claim = self.new_claim(host, guest, from_epoch);
        let serial = self.serial;
        let vm = Vm {
            claim,
            serial,
            built: false,
            runs: false,
            since_us: 0,
            stopping: false,
            ordered: true,
            arriving: false,
        };
        self.hosts[host].vms.insert(guest.into(), vm);
        self.tally.starts += 1;
        self.note_start(&Start {
            host,
            guest: guest.into(),
        });
        self.look(host, guest, serial);
    }

    pub fn stop(&mut self, host: usize, guest: &str) {
        let took = self.rng.between(100 * MS, 3 * SECOND);
        let Some(vm) = self.hosts[host].vms.get_mut(guest) else {
            return;
        };
        vm.stopping = true;
        let (serial, subject, life) = (vm.serial, guest.into(), self.hosts[host].life);
        self.queue.after(
            took,
            Ev::Lease {
                host,
                life,
                subject,
                serial,
                input: Input::Down,
            },
        );
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
            claim: self.new_claim(host, guest, last.epoch),
            serial: self.serial,
            built: false,
            runs: false,
            since_us: 0,
            stopping: true,
            ordered: false,
            arriving: false,
        };
        self.hosts[host].vms.insert(guest.into(), vm);
        if let Some(claim) = self.claim_mut(host, guest) {
            claim.begun = true;
        }
        let adopt = lease::Event::Adopt { last, died: true };
        self.lease_step(host, guest, adopt, trace);
        self.lease_step(host, guest, lease::Event::Release, trace);
    }

    fn look(&mut self, host: usize, subject: &str, serial: u64) {
        let took = self.latency() + self.latency();
        let life = self.hosts[host].life;
        if self.reaches_storage(host) {
            let input = Input::Seen(self.storage.last(subject).cloned());
            let subject = subject.into();
            self.queue.after(
                took,
                Ev::Lease {
                    host,
                    life,
                    subject,
                    serial,
                    input,
                },
            );
        } else {
            self.forget_claim(host, subject, "storage does not answer");
        }
    }

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
            Input::Event(event) => self.lease_step(host, subject, event, trace),
            Input::Built(works) => self.built(host, subject, works, trace),
            Input::Down => {
                if let Some(vm) = at.vms.get_mut(subject) {
                    (vm.runs, vm.stopping) = (false, true);
                }
                self.lease_step(host, subject, lease::Event::Release, trace);
            }
        }
    }

    fn claim_mut(&mut self, host: usize, subject: &str) -> Option<&mut super::host::Claim> {
        let at = &mut self.hosts[host];
        if subject == LEAD {
            return at.agent.as_mut()?.lead.as_mut();
        }
        at.vms.get_mut(subject).map(|vm| &mut vm.claim)
    }

    fn try_claims(&mut self, host: usize, trace: &mut Trace) {
        let at = &self.hosts[host];
        let waits = |claim: &super::host::Claim| claim.seen.is_some() && !claim.begun;
        let vms = at
            .vms
            .iter()
            .filter(|(_, vm)| waits(&vm.claim))
            .map(|(name, _)| name.clone());
        let mut subjects: Vec<String> = vms.collect();
        if at
            .agent
            .as_ref()
            .and_then(|a| a.lead.as_ref())
            .is_some_and(waits)
        {
            subjects.push(LEAD.into());
        }
        for subject in subjects {
            self.try_claim(host, &subject, trace);
        }
    }

    /// Claims as soon as the holder that was read is certainly gone.
    fn try_claim(&mut self, host: usize, subject: &str, trace: &mut Trace) {
        let now_us = self.queue.now_us();
        let watch_us = self.timing.watch_us(self.fencing || subject == LEAD);
        let at = &self.hosts[host];
        let Some(agent) = &at.agent else { return };
        let claim = match subject {
            LEAD => agent.lead.as_ref(),
            guest => at.vms.get(guest).map(|vm| &vm.claim),
        };
        let Some(claim) = claim.filter(|claim| !claim.begun) else {
            return;
        };
        let Some((last, read_us)) = claim.seen.clone() else {
            return;
        };
        let epoch = last.as_ref().map_or(0, |last| last.epoch);
        let holder = last.as_ref().and_then(|last| last.holder.as_ref());
        let verdict = holder.and_then(|holder| {
            let other = self.index(&holder.host)?;
            Some(
                agent
                    .observers
                    .get(&other)?
                    .verdict(holder, read_us, watch_us),
            )
        });
        let verdict = verdict.unwrap_or(storage_core::observer::Verdict::Unknown);
        let grounds = lease::grounds(claim.lease.identity(), last.as_ref(), verdict);
        let (from_epoch, give_up_us) = (claim.from_epoch, claim.give_up_us);
        match grounds {
            _ if epoch != from_epoch => self.lost_race(host, subject, last.as_ref(), trace),
            Ok(grounds) => self.begin_claim(host, subject, last, grounds, trace),
            Err(Held::ByUs { .. }) if subject == LEAD => {
                if let (Some(claim), Some(last)) = (self.claim_mut(host, LEAD), last) {
                    claim.begun = true;
                    self.lease_step(host, LEAD, lease::Event::Adopt { last, died: false }, trace);
                }
            }
            Err(_) if now_us < give_up_us => {}
            Err(held) => {
                let why = held.to_string();
                self.answer(host, subject, StartOutcome::Refused { why }, trace);
                self.forget_claim(host, subject, "its holder may live");
            }
        }
    }

    fn begin_claim(
        &mut self,
        host: usize,
        subject: &str,
        last: Option<LeaseRecord>,
        grounds: Grounds,
        trace: &mut Trace,
    ) {
        let can_fence = self.fencing && subject != LEAD;
        if let Some(claim) = self.claim_mut(host, subject) {
            claim.begun = true;
        }
        let event = lease::Event::Claim {
            last,
            grounds,
            can_fence,
        };
        self.lease_step(host, subject, event, trace);
    }

    fn lost_race(
        &mut self,
        host: usize,
        subject: &str,
        last: Option<&LeaseRecord>,
        trace: &mut Trace,
    ) {
        let seen: LeaseSeen = last.into();
        if subject == LEAD {
            self.forget_claim(host, LEAD, "outrun");
            return self.tell(host, Event::LeaderLease(seen), trace);
        }
        self.answer(host, subject, StartOutcome::LostRace { seen }, trace);
        self.forget_claim(host, subject, "outrun");
    }

    fn answer(&mut self, host: usize, guest: &str, outcome: StartOutcome, trace: &mut Trace) {
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

    fn forget_claim(&mut self, host: usize, subject: &str, _why: &str) {
        let at = &mut self.hosts[host];
        if subject == LEAD {
            if let Some(agent) = at.agent.as_mut() {
                agent.lead = None;
            }
        } else {
            at.vms.remove(subject);
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

    fn lease_action(
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

    fn create(&mut self, host: usize, record: &LeaseRecord) -> Outcome {
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

    fn lease_answer(&mut self, host: usize, subject: &str, event: lease::Event) {
        let took = self.latency() + self.latency();
        let serial = self.hosts[host].vms.get(subject).map_or(0, |vm| vm.serial);
        let (life, subject, input) = (self.hosts[host].life, subject.into(), Input::Event(event));
        self.queue.after(
            took,
            Ev::Lease {
                host,
                life,
                subject,
                serial,
                input,
            },
        );
    }

    fn may_run(&mut self, host: usize, subject: &str, trace: &mut Trace) {
        if subject == LEAD {
            let claim = self.claim_mut(host, LEAD);
            let seen = LeaseSeen::from(claim.and_then(|claim| claim.lease.record()));
            return self.tell(host, Event::LeaderLease(seen), trace);
        }
        let works = !self.broken.contains(&host);
        let took = self.rng.between(100 * MS, 400 * MS);
        let life = self.hosts[host].life;
        let Some(vm) = self.hosts[host].vms.get_mut(subject) else {
            return;
        };
        if vm.built {
            vm.runs = !vm.stopping;
            self.check_runner(host, subject);
        } else {
            let (serial, subject) = (vm.serial, subject.into());
            self.queue.after(
                took,
                Ev::Lease {
                    host,
                    life,
                    subject,
                    serial,
                    input: Input::Built(works),
                },
            );
        }
        self.report(host, subject, trace);
    }

    fn built(&mut self, host: usize, guest: &str, works: bool, trace: &mut Trace) {
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

    fn report(&mut self, host: usize, guest: &str, trace: &mut Trace) {
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

    fn refused(&mut self, host: usize, subject: &str, refusal: Refusal, trace: &mut Trace) {
        let claim = self.claim_mut(host, subject);
        let outside = claim.is_some_and(|claim| claim.lease.record().is_none());
        match refusal {
            Refusal::Outrun { last } => self.lost_race(host, subject, Some(&last), trace),
            other if outside => {
                let why = other.to_string();
                self.answer(host, subject, StartOutcome::Refused { why }, trace);
                self.forget_claim(host, subject, "refused");
                self.report(host, subject, trace);
            }
            // A release that could not be written is tried again until it is.
            _ if self.hosts[host]
                .vms
                .get(subject)
                .is_some_and(|vm| vm.stopping) =>
            {
                let (life, serial) = (self.hosts[host].life, self.hosts[host].vms[subject].serial);
                let subject = subject.into();
                self.queue.after(
                    500 * MS,
                    Ev::Lease {
                        host,
                        life,
                        subject,
                        serial,
                        input: Input::Down,
                    },
                );
            }
            _ => {}
        }
    }

    fn ended(&mut self, host: usize, subject: &str, trace: &mut Trace) {
        self.forget_claim(host, subject, "ended");
        if subject == LEAD {
            let seen = LeaseSeen::from(self.storage.last(LEAD));
            return self.tell(host, Event::LeaderLease(seen), trace);
        }
        self.report(host, subject, trace);
    }
}
