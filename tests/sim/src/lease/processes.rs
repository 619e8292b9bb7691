//! What the processes do: beat, watch, claim, write.

use storage_core::beat::{Writer, turn_us};
use storage_core::lease::{Action, Ending, Event, Grounds, grounds};
use storage_core::observer::{Observer, Verdict};
use storage_core::record::{Grant, HeartbeatRecord, LeaseRecord};

use super::host::{Agent, Guest, Leaving, Process, Who, incarnation, lease, name};
use super::rules::Broken;
use super::steps::{Origin, Request, Step};
use super::world::World;
use crate::harness::Trace;

const MS: u64 = 1000;
/// How long an agent waits before it asks for the lease again.
const LOOK_US: u64 = 300 * MS;

impl World {
    /// Whether the process is alive and moving; a frozen one gets the step when it thaws.
    pub(super) fn ready(&mut self, origin: Origin, again: impl FnOnce() -> Step) -> bool {
        let now_us = self.queue.now_us();
        let thaw_us = match self.hosts[origin.host].process(origin.who, origin.id) {
            None => return false,
            Some(process) => process.frozen_until_us,
        };
        if now_us < thaw_us {
            let at_us = thaw_us + self.rng.below(500);
            self.queue.at(at_us, again());
            return false;
        }
        true
    }

    pub(super) fn spawn(&mut self, host: usize, who: Who) {
        self.ids += 1;
        let id = self.ids;
        let timing = self.plan.timing;
        let process = Process {
            id,
            frozen_until_us: self.hosts[host].stopped_until_us,
            beating: false,
        };
        let boot = self.hosts[host].boot;
        match who {
            Who::Agent if self.hosts[host].agent.is_none() => {
                self.hosts[host].agent = Some(Agent {
                    process,
                    observers: (0..self.hosts.len())
                        .map(|host| (host, Observer::default()))
                        .collect(),
                    reading: false,
                    looking: false,
                    seen: None,
                    claim: None,
                });
            }
            Who::Guest if self.hosts[host].guest.is_none() => {
                self.hosts[host].guest = Some(Guest {
                    process,
                    lease: lease(host, boot, id, timing),
                    awaiting: false,
                    looking: false,
                    inode: None,
                    in_flight: 0,
                    leaving: None,
                    give_up_us: 0,
                });
                let origin = Origin { host, who, id };
                self.queue.after(1, Step::Write(origin));
            }
            Who::Agent | Who::Guest => return,
        }
        self.queue.after(0, Step::Tick(Origin { host, who, id }));
    }

    pub(super) fn tick(&mut self, origin: Origin, trace: &mut Trace) {
        self.beat(origin);
        match origin.who {
            Who::Agent => self.agent_tick(origin, trace),
            Who::Guest => self.guest_tick(origin, trace),
        }
        let next_us = self.next_tick_us(origin);
        self.queue.at(next_us, Step::Tick(origin));
    }

    /// As a real process would set its timer, and never later than in a tenth of a second.
    pub(super) fn next_tick_us(&mut self, origin: Origin) -> u64 {
        let now_us = self.queue.now_us();
        let host = &self.hosts[origin.host];
        let timing = &self.plan.timing;
        let own_us = host.clock.own_us(now_us);
        let beat_us = turn_us(writer(origin.who), host.page.pace, own_us, timing);
        let process = match origin.who {
            Who::Agent => host.agent.as_ref().map(|agent| &agent.process),
            Who::Guest => host.guest.as_ref().map(|guest| &guest.process),
        };
        let beating = process.is_some_and(|process| process.beating);
        let mut next_us = if beating { u64::MAX } else { beat_us };
        let machine = match origin.who {
            Who::Agent => host.agent.as_ref().and_then(|agent| agent.claim.as_ref()),
            Who::Guest => host.guest.as_ref().map(|guest| &guest.lease),
        };
        if let Some(machine) = machine {
            next_us = next_us.min(machine.wake_us(host.page.hold));
        }
        if let (Who::Agent, Some(agent)) = (origin.who, &host.agent)
            && !agent.reading
            && let Some(of) = elsewhere(agent, origin.host)
        {
            let watch_us = timing.watch_us(self.plan.fenced);
            next_us = next_us.min(agent.observers[&of].next_read_us(timing, watch_us));
        }
        let soon_us = now_us + self.rng.between(MS, 4 * MS);
        let lazy_us = self.rng.between(50 * MS, 100 * MS);
        // Reads further apart than a beat or two would void what was counted of a silence.
        let late_us = now_us + lazy_us.min(timing.interval_us());
        host.clock.true_us(next_us).clamp(soon_us, late_us)
    }

    pub(super) fn beat(&mut self, origin: Origin) {
        let now_us = self.queue.now_us();
        let mut timing = self.plan.timing;
        if self.rules.broken(Broken::BootWait) {
            timing.in_flight_ms = 0;
        }
        let host = &mut self.hosts[origin.host];
        let own_us = host.clock.own_us(now_us);
        let (boot, mut page) = (host.boot, host.page);
        let Some(process) = host.process(origin.who, origin.id) else {
            return;
        };
        if process.beating || turn_us(writer(origin.who), page.pace, own_us, &timing) > own_us {
            return;
        }
        process.beating = true;
        page.pace.begun_us = own_us;
        if origin.who == Who::Agent {
            page.pace.agent_us = own_us;
        }
        page.counter += 1;
        host.page = page;
        let record = HeartbeatRecord {
            host: name(origin.host),
            incarnation: incarnation(origin.host, boot),
            counter: page.counter,
            sent_us: own_us,
            term: page.hold.term(),
            flags: 0,
            writer_pid: origin.id as u32,
        };
        self.send(
            origin,
            Request::Beat {
                record,
                sent_us: own_us,
            },
        );
    }

    pub(super) fn agent_tick(&mut self, origin: Origin, trace: &mut Trace) {
        let own_us = self.own_us(origin.host);
        let timing = self.plan.timing;
        if self.agent(origin).claim.is_some() {
            self.drive(origin, Event::Tick, trace);
            return;
        }
        let busy = self.hosts[origin.host].guest.is_some();
        let fenced = self.plan.fenced;
        let agent = self.agent(origin);
        if !agent.looking
            && agent
                .seen
                .as_ref()
                .is_none_or(|(_, at_us)| own_us > at_us + LOOK_US)
        {
            agent.looking = true;
            self.send(origin, Request::Look);
        }
        if busy || self.agent(origin).reading {
            return;
        }
        let Some(of) = elsewhere(self.agent(origin), origin.host) else {
            return;
        };
        let observer = &self.agent(origin).observers[&of];
        if own_us >= observer.next_read_us(&timing, timing.watch_us(fenced)) {
            self.agent(origin).reading = true;
            self.send(
                origin,
                Request::Read {
                    of,
                    issued_us: own_us,
                },
            );
        }
    }

    /// The agent knows something new: may it claim, or start its guest again?
    pub(super) fn consider(&mut self, origin: Origin, trace: &mut Trace) {
        let boot = self.hosts[origin.host].boot;
        if self.hosts[origin.host].guest.is_some() || self.agent(origin).claim.is_some() {
            return;
        }
        let machine = lease(
            origin.host,
            boot,
            origin.id + (self.queue.now_us() << 16),
            self.plan.timing,
        );
        let Some((last, read_us)) = self.agent(origin).seen.clone() else {
            return;
        };
        if last
            .as_ref()
            .is_some_and(|last| machine.identity().is_holder(last))
        {
            let delay_us = self.rng.between(MS, 30 * MS);
            self.agent(origin).seen = None;
            self.queue.after(
                delay_us,
                Step::Spawn {
                    host: origin.host,
                    boot,
                    who: Who::Guest,
                },
            );
            return;
        }
        let verdict = self.verdict(origin, last.as_ref(), read_us);
        let Ok(grounds) = grounds(machine.identity(), last.as_ref(), verdict) else {
            return;
        };
        if let Grounds::Silent { .. } | Grounds::Rebooted = grounds {
            self.tally.takeovers += 1;
        }
        self.agent(origin).claim = Some(machine);
        let can_fence = self.plan.fenced;
        self.drive(
            origin,
            Event::Claim {
                last,
                grounds,
                can_fence,
            },
            trace,
        );
    }

    pub(super) fn verdict(
        &mut self,
        origin: Origin,
        last: Option<&LeaseRecord>,
        read_us: u64,
    ) -> Verdict {
        let watch_us = self.rules.watch_us(&self.plan.timing, self.plan.fenced);
        let read_us = if self.rules.broken(Broken::ReadOrder) {
            0
        } else {
            read_us
        };
        let Some(holder) = last.and_then(|last| last.holder.as_ref()) else {
            return Verdict::Unknown;
        };
        let of = usize::from(holder.incarnation.0[0]);
        self.agent(origin).observers[&of].verdict(holder, read_us, watch_us)
    }

    pub(super) fn guest_tick(&mut self, origin: Origin, trace: &mut Trace) {
        let now_us = self.queue.now_us();
        let guest = self.guest(origin);
        let unborn = guest.lease.record().is_none() && guest.lease.ending().is_none();
        if unborn {
            if guest.awaiting && now_us > guest.give_up_us {
                self.hosts[origin.host].guest = None;
            } else if !guest.looking {
                guest.looking = true;
                self.send(origin, Request::Look);
            }
            return;
        }
        self.drive(origin, Event::Tick, trace);
        let Some(guest) = self.hosts[origin.host].guest.as_mut() else {
            return;
        };
        if guest.in_flight > 0 || guest.lease.acting_term().is_none() {
            return;
        }
        match guest.leaving.take() {
            Some(Leaving::To(to)) => {
                self.tally.hand_overs += 1;
                let nonce = u128::from(self.tally.hand_overs).to_le_bytes();
                self.drive(origin, Event::HandOver { to, nonce }, trace);
            }
            Some(Leaving::Release) => self.drive(origin, Event::Release, trace),
            None => {}
        }
    }

    /// The guest asks the gate, and what it lets through goes out a little later.
    pub(super) fn guest_write(&mut self, origin: Origin) {
        let acts = self.passes(origin);
        let stop_us = self.plan.timing.stop_us();
        let line = self.line_of(origin.id);
        let guest = self.guest(origin);
        if let (true, Some(inode), None) = (acts, guest.inode, &guest.leaving) {
            guest.in_flight += 1;
            self.tally.writes += 1;
            let delay_us = if self.rng.chance(200) {
                self.rng.below(stop_us)
            } else {
                0
            };
            self.queue.after(
                delay_us,
                Step::Issue(origin, Request::Write { inode, line }),
            );
        }
        let next_us = self.rng.between(5 * MS, 60 * MS);
        self.queue.after(next_us, Step::Write(origin));
    }

    /// The gate in front of the disk.
    fn passes(&mut self, origin: Origin) -> bool {
        let hold = self.hosts[origin.host].page.hold;
        let own_us = self.own_us(origin.host);
        let lease = &self.guest(origin).lease;
        let told_to_run = lease.acting_term().is_some();
        let term = lease.record().and_then(|record| record.holder.as_ref());
        let had_it = term.is_some_and(|holder| hold.covers(own_us, holder.term));
        self.acts(origin.host)
            || (told_to_run && self.rules.broken(Broken::Gate))
            || (had_it && self.rules.broken(Broken::Commit))
    }

    /// Feeds the machine of a process and does what it says.
    pub(super) fn drive(&mut self, origin: Origin, event: Event, trace: &mut Trace) {
        let own_us = self.own_us(origin.host);
        let now_us = self.queue.now_us();
        let host = &mut self.hosts[origin.host];
        let hold = host.page.hold;
        let machine = match origin.who {
            Who::Agent => host.agent.as_mut().and_then(|agent| agent.claim.as_mut()),
            Who::Guest => host.guest.as_mut().map(|guest| &mut guest.lease),
        };
        let Some(machine) = machine else { return };
        if event != Event::Tick {
            trace.note(now_us, || {
                format!("{origin:?} own {own_us} {hold:?}: {event:?}")
            });
        }
        let actions = machine.step(own_us, hold, event);
        if !actions.is_empty() {
            trace.note(now_us, || {
                format!("{origin:?} own {own_us} {hold:?}: -> {actions:?}")
            });
        }
        for action in actions {
            self.act(origin, action);
        }
    }

    pub(super) fn act(&mut self, origin: Origin, action: Action) {
        match action {
            Action::Create(record) => {
                let look_only =
                    self.rules.broken(Broken::Renewal) && record.grant == Grant::Renewed;
                let request = if look_only {
                    Request::Confirm(record)
                } else {
                    Request::Link(record)
                };
                self.send(origin, request);
            }
            Action::Settle(record) => self.send(origin, Request::Withdraw(record)),
            Action::Look => self.send(origin, Request::Look),
            Action::Fence { epoch } => self.send(origin, Request::Clone(epoch)),
            Action::Forget { before } => {
                // Under this rule broken, the epoch to keep may not be there.
                if !self.rules.broken(Broken::Renewal) {
                    self.send(origin, Request::Forget(before));
                }
            }
            Action::Run => self.run_guest(origin),
            Action::Pause => {}
            Action::Refused(_) => {
                if origin.who == Who::Agent
                    && self
                        .agent(origin)
                        .claim
                        .as_ref()
                        .is_some_and(|claim| claim.record().is_none())
                {
                    self.agent(origin).claim = None;
                    self.agent(origin).seen = None;
                }
            }
            Action::End(ending) => {
                if let Ending::Lost(_) = ending {
                    self.tally.lost += 1;
                }
                match origin.who {
                    Who::Agent => {
                        self.agent(origin).claim = None;
                        self.agent(origin).seen = None;
                    }
                    Who::Guest => {
                        if self.plan.outages_only {
                            self.fail(
                                "an outage that all hosts saw ended a guest's process".into(),
                            );
                        }
                        self.hosts[origin.host].guest = None;
                        self.hosts[origin.host].acted = None;
                    }
                }
            }
        }
    }

    pub(super) fn run_guest(&mut self, origin: Origin) {
        let boot = self.hosts[origin.host].boot;
        if origin.who == Who::Agent {
            self.agent(origin).claim = None;
            self.agent(origin).seen = None;
            let delay_us = self.rng.between(MS, 20 * MS);
            self.queue.after(
                delay_us,
                Step::Spawn {
                    host: origin.host,
                    boot,
                    who: Who::Guest,
                },
            );
            return;
        }
        self.tally.runs += 1;
        let epoch = self
            .guest(origin)
            .lease
            .record()
            .map_or(0, |record| record.epoch);
        // A zombie whose clock stood still may come later than its successor.
        if epoch >= self.line.epoch {
            self.line.epoch = epoch;
            if self.line.process != Some(origin.id) {
                self.line.number += 1;
            }
            self.line.process = Some(origin.id);
        }
        let guest = self.guest(origin);
        let closed = guest.inode.is_none();
        self.hosts[origin.host].acted = Some(epoch);
        if closed {
            self.send(origin, Request::Open(epoch));
        }
    }
}

/// The host that the agent believes to hold the lease, if it is another.
fn elsewhere(agent: &Agent, us: usize) -> Option<usize> {
    let (last, _) = agent.seen.as_ref()?;
    let holder = last.as_ref()?.holder.as_ref()?;
    let of = usize::from(holder.incarnation.0[0]);
    (of != us).then_some(of)
}

fn writer(who: Who) -> Writer {
    match who {
        Who::Agent => Writer::Agent,
        Who::Guest => Writer::Guest,
    }
}
