//! The fake world: hosts, their storage, the time between a request and its effect, and the
//! invariants that are checked after every event.

use super::Tally;
use super::host::{Agent, Guest, Host, Process, Who};
use super::plan::{Fault, HEAL_US, Plan};
use super::rules::{Broken, Rules};
use super::steps::{Origin, Step};
use super::storage::Storage;
use crate::harness::{Trace, Violation};
use crate::queue::Queue;
use crate::rng::Rng;

const MS: u64 = 1000;
const HOUR_US: u64 = 3_600_000_000;
/// How long what crashes at a step stays away.
const OFF_US: u64 = 500 * MS;
/// A history that has more events than this runs in circles.
const EVENT_LIMIT: u64 = 200_000;

/// In the words of every violation in which two run one guest: both may, ...
pub const ACT_AT_ONCE: &str = "may act at the same time";
/// ... or what one of them wrote arrived under the other.
pub const LATE_WRITE: &str = "reached the disk after";

/// Which process acted last: everything issued before by others is stale, also by one that died
/// on the same host.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) number: u64,
    pub(super) epoch: u64,
    pub(super) process: Option<u64>,
}

/// What dies before a step.
#[derive(Debug, Clone, Copy)]
pub struct Crash {
    /// Before the step of this number, ...
    pub before: u64,
    /// ... where it takes place.
    pub what: Victim,
}

/// What a [`Crash`] ends.
#[derive(Debug, Clone, Copy)]
pub enum Victim {
    /// The process whose step it is.
    Process,
    /// The whole host, for a while.
    Host,
    /// The whole host, for good.
    HostForGood,
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
    crash: Option<Crash>,
}

impl World {
    /// The world of a seed.
    pub fn new(seed: u64, rules: Rules) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::new(&mut rng.split());
        Self::of(plan, rng, rules, None)
    }

    /// A quiet world in which there is one crash at most.
    pub fn quiet(seed: u64, rules: Rules, crash: Option<Crash>) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::quiet(&mut rng.split());
        Self::of(plan, rng, rules, crash)
    }

    fn of(mut plan: Plan, mut rng: Rng, rules: Rules, crash: Option<Crash>) -> Self {
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
            crash,
        }
    }

    /// How many steps there are until `until_us`.
    pub fn steps_until(mut self, until_us: u64) -> u64 {
        let mut steps = 0;
        while let Some((at_us, step)) = self.queue.pop() {
            if at_us > until_us {
                break;
            }
            steps += 1;
            self.step(step, &mut Trace::default());
        }
        steps
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
            self.crash_before(events, &step, trace);
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

    fn crash_before(&mut self, number: u64, step: &Step, trace: &mut Trace) {
        let Some(crash) = self.crash.filter(|crash| crash.before == number) else {
            return;
        };
        let Some((host, who)) = step.place() else {
            return;
        };
        let off_us = Some(OFF_US);
        let fault = match (crash.what, who) {
            (Victim::Process, Who::Guest) => Fault::GuestCrash { host },
            (Victim::Process, Who::Agent) => Fault::AgentCrash {
                host,
                off_us: OFF_US,
            },
            (Victim::Host, _) => Fault::PowerCut { host, off_us },
            (Victim::HostForGood, _) => Fault::PowerCut { host, off_us: None },
        };
        trace.note(self.queue.now_us(), || {
            format!("{fault:?} before step {number}: {step:?}")
        });
        self.fault(fault);
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
                // The dead issue nothing; what stands still may, within `S` of its passing the gate.
                let alive = self.process_of(origin).is_some();
                let may_freeze = self.plan.late_writes;
                let again = || Step::Issue(origin, request.clone());
                if alive && (!may_freeze || self.ready(origin, again)) {
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
            self.fail(format!("hosts {acting:?} {ACT_AT_ONCE}"));
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

    pub(super) fn line_of(&self, process: u64) -> u64 {
        if self.line.process == Some(process) {
            self.line.number
        } else {
            0
        }
    }

    pub(super) fn own_us(&self, host: usize) -> u64 {
        self.hosts[host].clock.own_us(self.queue.now_us())
    }

    fn process_of(&mut self, origin: Origin) -> Option<&mut Process> {
        self.hosts[origin.host].process(origin.who, origin.id)
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
