//! The fake world: hosts, their storage, the time between a request and its effect, and the
//! invariants that are checked after every event.

use super::Tally;
use super::host::{Agent, Guest, Host, Who};
use super::plan::{HEAL_US, Plan};
use super::rules::{Broken, Rules};
use super::steps::{Origin, Step};
use super::storage::Storage;
use crate::harness::{Trace, Violation};
use crate::queue::Queue;
use crate::rng::Rng;

const MS: u64 = 1000;
const HOUR_US: u64 = 3_600_000_000;
/// A history that has more events than this runs in circles.
const EVENT_LIMIT: u64 = 200_000;

/// Who acted last: everything issued before by others is stale.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) number: u64,
    pub(super) epoch: u64,
    pub(super) holder: Option<(usize, u64)>,
}

/// One history.
pub struct World {
    pub(super) plan: Plan,
    pub(super) rules: Rules,
    pub(super) rng: Rng,
    pub(super) queue: Queue<Step>,
    pub(super) storage: Storage,
    pub(super) outage_until_us: u64,
    pub(super) hosts: Vec<Host>,
    pub(super) line: Line,
    pub(super) ids: u64,
    pub(super) tally: Tally,
    violation: Option<String>,
}

impl World {
    /// The world of a seed.
    pub fn new(seed: u64, rules: Rules) -> Self {
        let mut rng = Rng::new(seed);
        let mut plan = Plan::new(&mut rng.split());
        if rules.broken(Broken::Fence) {
            plan.fence_fails = false;
        }
        let drift = u64::from(plan.timing.drift_ppm);
        let mut queue = Queue::default();
        let mut hosts = Vec::new();
        for host in 0..plan.hosts {
            let uptime_us = HOUR_US + rng.below(HOUR_US);
            hosts.push(Host::boot(0, 1, uptime_us, drift, &mut rng));
            let at_us = rng.below(200 * MS);
            queue.at(
                at_us,
                Step::Spawn {
                    host,
                    boot: 1,
                    who: Who::Agent,
                },
            );
        }
        for (at_us, fault) in &plan.faults {
            queue.at(*at_us, Step::Fault(*fault));
        }
        Self {
            plan,
            rules,
            rng,
            queue,
            storage: Storage::new(),
            outage_until_us: 0,
            hosts,
            line: Line::default(),
            ids: 0,
            tally: Tally::default(),
            violation: None,
        }
    }

    /// Runs to the end.
    pub fn run(mut self, trace: &mut Trace) -> Result<Tally, Violation> {
        trace.note(0, || format!("{:?}", self.plan));
        let end_us = HEAL_US + 4_000 * MS + 6 * self.plan.timing.watch_us(false);
        let mut events = 0;
        while let Some((at_us, step)) = self.queue.pop() {
            if at_us > end_us {
                break;
            }
            events += 1;
            if events > EVENT_LIMIT {
                self.fail("the history does not end".into());
            }
            self.step(step, trace);
            self.check();
            if let Some(what) = self.violation {
                return Err(Violation { at_us, what });
            }
        }
        self.tally.events = events;
        let acting = (0..self.hosts.len()).any(|host| self.acts(host));
        if !acting && self.rules.0.is_none() {
            let at_us = self.queue.now_us();
            let what = format!(
                "faults ended at {} s and nobody runs the guest; last epoch {:?}",
                HEAL_US / 1_000_000,
                self.storage.last()
            );
            return Err(Violation { at_us, what });
        }
        Ok(self.tally)
    }

    fn step(&mut self, step: Step, trace: &mut Trace) {
        let now_us = self.queue.now_us();
        match step {
            Step::Tick(origin) => {
                if self.ready(origin, || Step::Tick(origin)) {
                    self.tick(origin, trace);
                }
            }
            Step::Write(origin) => {
                if self.ready(origin, || Step::Write(origin)) {
                    self.guest_write(origin);
                }
            }
            Step::Issue(origin, request) => {
                let frozen = self.plan.late_writes;
                if !frozen || self.ready(origin, || Step::Issue(origin, request.clone())) {
                    self.send(origin, request);
                }
            }
            Step::Land {
                origin,
                request,
                answered,
            } => {
                self.land(origin, request, answered, trace);
            }
            Step::Answer(origin, answer) => {
                if self.ready(origin, || Step::Answer(origin, answer.clone())) {
                    self.answer(origin, answer, trace);
                }
            }
            Step::Spawn { host, boot, who } => {
                if self.hosts[host].up && self.hosts[host].boot == boot {
                    self.spawn(host, who);
                }
            }
            Step::Fault(fault) => {
                trace.note(now_us, || format!("{fault:?}"));
                self.fault(fault);
            }
            Step::Boot(host) => self.boot(host),
            Step::ClockThaw { host, own_us } => self.hosts[host].clock.set(now_us, own_us),
        }
    }

    // --- what must always hold ---

    /// Whether the guest's process on this host may act at this instant, by its own clock.
    pub(super) fn acts(&self, host: usize) -> bool {
        let now_us = self.queue.now_us();
        let host = &self.hosts[host];
        host.guest.as_ref().is_some_and(|guest| {
            now_us >= guest.process.frozen_until_us
                && guest
                    .lease
                    .may_act(host.clock.own_us(now_us), host.page.hold)
        })
    }

    pub(super) fn check(&mut self) {
        let acting: Vec<usize> = (0..self.hosts.len())
            .filter(|host| self.acts(*host))
            .collect();
        if acting.len() > 1 && !self.plan.clock_faults {
            self.fail(format!("hosts {acting:?} may act at the same time"));
        }
        let last = self.storage.last().map_or(0, |last| last.epoch);
        if last < self.storage.highest {
            self.fail(format!("epoch {} gave way to {last}", self.storage.highest));
        }
        if self.plan.outages_only && self.line.number > 1 {
            self.fail("an outage that all hosts saw cost a guest its host".into());
        }
    }

    pub(super) fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub(super) fn line_of(&self, host: usize) -> u64 {
        if self.line.holder == Some((host, self.hosts[host].boot)) {
            self.line.number
        } else {
            0
        }
    }

    pub(super) fn own_us(&self, host: usize) -> u64 {
        self.hosts[host].clock.own_us(self.queue.now_us())
    }

    pub(super) fn agent(&mut self, origin: Origin) -> &mut Agent {
        self.hosts[origin.host]
            .agent
            .as_mut()
            .expect("only called for a living agent")
    }

    pub(super) fn guest(&mut self, origin: Origin) -> &mut Guest {
        self.hosts[origin.host]
            .guest
            .as_mut()
            .expect("only called for a living guest")
    }
}
