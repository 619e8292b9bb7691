//! The way to the storage and back: delays, losses, effects, answers.

use storage_core::lease::{Event, Outcome};
use storage_core::observer::Sight;
use storage_core::record::{Grant, LeaseRecord};

use super::host::Who;
use super::plan::HEAL_US;
use super::rules::Broken;
use super::steps::{Answer, Origin, Request, Step};
use super::world::{LATE_WRITE, World};
use crate::harness::Trace;

const MS: u64 = 1000;

impl World {
    pub(super) fn send(&mut self, origin: Origin, request: Request) {
        let now_us = self.queue.now_us();
        let mortal = matches!(request, Request::Beat { .. } | Request::Write { .. });
        let late = self.plan.late_writes && matches!(request, Request::Write { .. });
        let mut at_us = now_us + self.trip_us();
        at_us = at_us.max(self.stalled_until_us(origin.host));
        let life_us = self.plan.timing.in_flight_us();
        let lost = self.trouble(3);
        if lost || (mortal && !late && at_us > now_us + life_us) {
            // It dies on the way; whoever asked learns that when the storage is back.
            let told_us = if lost {
                at_us + self.rng.between(100 * MS, 1000 * MS)
            } else {
                at_us
            };
            self.queue
                .at(told_us, Step::Answer(origin, Answer::Failed(request)));
            return;
        }
        let answered = !self.trouble(3);
        self.queue.at(
            at_us,
            Step::Land {
                origin,
                request,
                answered,
            },
        );
    }

    pub(super) fn trip_us(&mut self) -> u64 {
        if self.trouble(1) {
            let longest_us = *self.rng.pick(&[50 * MS, 400 * MS, 3000 * MS]);
            self.rng.between(MS, longest_us)
        } else {
            self.rng.between(300, 6 * MS)
        }
    }

    pub(super) fn trouble(&mut self, rarer: u64) -> bool {
        self.queue.now_us() < HEAL_US && self.rng.below(1000 * rarer) < self.plan.trouble
    }

    pub(super) fn stalled_until_us(&mut self, host: usize) -> u64 {
        let until_us = self.outage_until_us.max(self.hosts[host].cut_until_us);
        if until_us > self.queue.now_us() {
            until_us + self.rng.below(5 * MS)
        } else {
            0
        }
    }

    pub(super) fn land(
        &mut self,
        origin: Origin,
        request: Request,
        answered: bool,
        trace: &mut Trace,
    ) {
        let now_us = self.queue.now_us();
        // A request under way when the storage goes away waits like all others, unless it is
        // one that would outlive its bound; that one got through just before.
        let mortal = matches!(request, Request::Beat { .. } | Request::Write { .. });
        if self.outage_until_us > now_us && !mortal {
            let at_us = self.stalled_until_us(origin.host);
            self.queue.at(
                at_us,
                Step::Land {
                    origin,
                    request,
                    answered,
                },
            );
            return;
        }
        if !matches!(
            request,
            Request::Beat { .. } | Request::Read { .. } | Request::Write { .. } | Request::Look
        ) {
            trace.note(now_us, || format!("{origin:?} lands {request:?}"));
        }
        let back_us = self.trip_us();
        let alive = self.hosts[origin.host]
            .process(origin.who, origin.id)
            .is_some();
        match self.apply(origin, &request) {
            // The process itself goes on to the next request, if it still lives.
            Err(next) if alive => self.send(origin, *next),
            Err(_) => {}
            Ok(answer) => {
                let answer = if answered {
                    answer
                } else {
                    Answer::Failed(request)
                };
                let at_us = (now_us + back_us).max(self.stalled_until_us(origin.host));
                self.queue.at(at_us, Step::Answer(origin, answer));
            }
        }
    }

    /// The effect: an answer, or what the same operation asks next.
    fn apply(&mut self, origin: Origin, request: &Request) -> Result<Answer, Box<Request>> {
        let storage = &mut self.storage;
        Ok(match request.clone() {
            Request::Beat { record, sent_us } => {
                storage.heartbeats.insert(origin.host, record);
                Answer::Beat { sent_us }
            }
            Request::Read { of, issued_us } => Answer::Read {
                of,
                issued_us,
                record: storage.heartbeats.get(&of).cloned(),
            },
            Request::Link(record) => {
                return Err(Box::new(if storage.link(&record) {
                    Request::Confirm(record)
                } else {
                    Request::Withdraw(record)
                }));
            }
            Request::Confirm(record) => {
                let last = storage.last().map_or(0, |last| last.epoch);
                if last <= record.epoch || self.rules.broken(Broken::Confirm) {
                    Answer::Created(record, Outcome::Won)
                } else {
                    if storage.epochs.get(&record.epoch) == Some(&record) {
                        storage.epochs.remove(&record.epoch);
                    }
                    return Err(Box::new(Request::Withdraw(record)));
                }
            }
            Request::Withdraw(record) => {
                storage.withdrawn.insert(record.nonce);
                return Err(Box::new(Request::Check(record)));
            }
            Request::Check(record) => {
                let outcome = match storage.last() {
                    Some(last) if last.nonce == record.nonce => Outcome::Won,
                    Some(last) if last.epoch >= record.epoch => {
                        Outcome::Lost { last: last.clone() }
                    }
                    _ => Outcome::Absent,
                };
                Answer::Created(record, outcome)
            }
            Request::Look => Answer::Looked(storage.last().cloned()),
            Request::Clone(epoch) => {
                if self.rules.broken(Broken::Fence) {
                    return Ok(Answer::Fenced(epoch, true));
                }
                if !self.plan.fenced || (self.plan.fence_fails && self.rng.chance(500)) {
                    let taken_for_done = self.rules.broken(Broken::FenceWait);
                    return Ok(Answer::Fenced(epoch, taken_for_done));
                }
                storage.clone_disk(epoch);
                return Err(Box::new(Request::Unlink(epoch)));
            }
            Request::Unlink(epoch) => {
                storage.unlink_older();
                Answer::Fenced(epoch, true)
            }
            Request::Open(epoch) => Answer::Opened(storage.open(epoch)),
            Request::Forget(before) => {
                storage.epochs.retain(|epoch, _| *epoch >= before);
                return Ok(Answer::Forgotten);
            }
            Request::Write { inode, line } => {
                if line != self.line.number && storage.is_current(inode) {
                    let what = format!(
                        "a write that host {} issued in line {line} {LATE_WRITE} line {} had begun",
                        origin.host, self.line.number
                    );
                    self.fail(what);
                }
                Answer::Written
            }
        })
    }

    pub(super) fn answer(&mut self, origin: Origin, answer: Answer, trace: &mut Trace) {
        let own_us = self.own_us(origin.host);
        let reach_us = self.plan.timing.reach_us();
        match answer {
            Answer::Beat { sent_us } => {
                let host = &mut self.hosts[origin.host];
                host.page.hold = self
                    .rules
                    .after_ack(host.page.hold, sent_us, own_us, reach_us);
                if let Some(process) = host.process(origin.who, origin.id) {
                    process.beating = false;
                }
            }
            Answer::Read {
                of,
                issued_us,
                record,
            } => {
                let hold = self.hosts[origin.host].page.hold;
                let blind = self.rules.broken(Broken::OwnGap);
                let own_term =
                    (blind || hold.is_live(own_us)).then(|| if blind { 0 } else { hold.term() });
                let timing = self.rules.observer_timing(&self.plan.timing);
                let agent = self.agent(origin);
                agent.reading = false;
                if let (Some(observer), Some(record)) = (agent.observers.get_mut(&of), record) {
                    observer.read(issued_us, own_us, &Sight::Beat(record), own_term, &timing);
                }
                self.consider(origin, trace);
            }
            Answer::Created(record, outcome) => {
                self.drive(origin, Event::Created { record, outcome }, trace);
            }
            Answer::Looked(last) => self.looked(origin, last, trace),
            Answer::Fenced(epoch, done) => {
                self.drive(origin, Event::Fenced { epoch, done }, trace);
            }
            Answer::Opened(inode) => self.guest(origin).inode = inode,
            Answer::Written => {
                if let (Who::Guest, Some(guest)) =
                    (origin.who, self.hosts[origin.host].guest.as_mut())
                {
                    guest.in_flight = guest.in_flight.saturating_sub(1);
                }
            }
            Answer::Forgotten => {}
            Answer::Failed(request) => self.failed(origin, request, trace),
        }
    }

    pub(super) fn looked(&mut self, origin: Origin, last: Option<LeaseRecord>, trace: &mut Trace) {
        let own_us = self.own_us(origin.host);
        match origin.who {
            Who::Agent => {
                let agent = self.agent(origin);
                agent.looking = false;
                // What was found first is when it was found: heartbeats read since count.
                if agent.seen.as_ref().is_none_or(|(seen, _)| *seen != last) {
                    agent.seen = Some((last, own_us));
                }
                self.consider(origin, trace);
            }
            Who::Guest => {
                let careless = self.rules.broken(Broken::Successor);
                let acted = self.hosts[origin.host].acted.filter(|_| !careless);
                let guest = self.guest(origin);
                guest.looking = false;
                if guest.lease.record().is_some() {
                    return self.drive(origin, Event::Looked { last }, trace);
                }
                let ours = last
                    .as_ref()
                    .is_some_and(|last| guest.lease.identity().is_holder(last));
                match last {
                    Some(last) if ours || !guest.awaiting => {
                        guest.awaiting = false;
                        let died = acted.is_some_and(|acted| {
                            last.epoch <= acted || last.grant == Grant::Renewed
                        });
                        self.drive(origin, Event::Adopt { last, died }, trace);
                    }
                    _ => {}
                }
            }
        }
    }

    pub(super) fn failed(&mut self, origin: Origin, request: Request, trace: &mut Trace) {
        match request {
            Request::Beat { .. } => {
                if let Some(process) = self.hosts[origin.host].process(origin.who, origin.id) {
                    process.beating = false;
                }
            }
            Request::Read { of, .. } => {
                let blind = self.rules.broken(Broken::OwnGap);
                let agent = self.agent(origin);
                agent.reading = false;
                if let Some(observer) = agent.observers.get_mut(&of)
                    && !blind
                {
                    observer.failed();
                }
            }
            Request::Link(record)
            | Request::Confirm(record)
            | Request::Withdraw(record)
            | Request::Check(record) => {
                let sure = self.rules.broken(Broken::Settle);
                let outcome = if sure {
                    Outcome::Absent
                } else {
                    Outcome::Unknown
                };
                self.drive(origin, Event::Created { record, outcome }, trace);
            }
            Request::Look => match origin.who {
                Who::Agent => self.agent(origin).looking = false,
                Who::Guest => self.guest(origin).looking = false,
            },
            Request::Clone(epoch) | Request::Unlink(epoch) => {
                // An error, and the operation is repeated.
                self.send(origin, Request::Clone(epoch));
            }
            Request::Open(epoch) => self.send(origin, Request::Open(epoch)),
            Request::Forget(_) | Request::Write { .. } => {}
        }
    }
}
