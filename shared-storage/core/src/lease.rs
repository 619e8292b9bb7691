//! One lease as one host sees it: acquire, keep, stop, resume, hand over, release, lose.
//!
//! ```text
//!              claim                won              fenced
//!   Outside ─────────► Claiming ───────► Fencing ─────────► Holding ◄─┐
//!      ▲                 │  │               │                │ │ │    │ won
//!      └── lost, absent ─┘  └─ late ─┐      │ lapsed         │ │ │    │
//!                                    ▼      ▼       lapsed   │ │ │    │
//!                                   Stopped ◄────────────────┘ │ └──────► Claiming e+1
//!                                    │   ▲                     │      │   (hand over,
//!             host beats again       ▼   │ absent              │      │    release)
//!                             Claiming e+1 (renew) ────────────┼──────┘       │ won
//!                                    │ lost                    │ taken        ▼
//!                                    └──────────► Ended ◄──────┴────────── Ended
//! ```
//!
//! Every change of hands is the exclusive creation of the next epoch, so that of all who try
//! exactly one succeeds. That includes coming back after a lapse: finding one's own epoch
//! still the last proves nothing, because a contender may be about to create the next. Who
//! wants to go on has to create it first.
//!
//! Answers of the shell carry the record they answer, and late ones to an older question
//! are ignored.

use alloc::string::String;
use alloc::vec::Vec;

use crate::hold::Hold;
use crate::observer::Verdict;
use crate::record::{Grant, Holder, Incarnation, LeaseRecord};
use crate::timing::Timing;

/// How long to wait before an unanswered question is asked again.
const RETRY_US: u64 = 200_000;
/// How often a holder looks whether its epoch is still the last, in spans of `R`. Within the
/// inequality it always is; this finds an operator's force and a clock that stood still.
const REACHES_PER_LOOK: u64 = 4;

/// Who we are and what is leased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: [u8; 16],
    /// The guest's name, or the leadership.
    pub subject: String,
    /// This host.
    pub host: String,
    /// Its boot.
    pub incarnation: Incarnation,
    /// Random, different for every process that may claim.
    pub salt: [u8; 8],
}

impl Identity {
    /// Us as a holder in `term`.
    pub fn holder(&self, term: u32) -> Holder {
        Holder {
            host: self.host.clone(),
            incarnation: self.incarnation,
            term,
        }
    }

    /// Whether `record` names this boot of this host.
    pub fn is_holder(&self, record: &LeaseRecord) -> bool {
        let is_us =
            |holder: &Holder| holder.host == self.host && holder.incarnation == self.incarnation;
        record.holder.as_ref().is_some_and(is_us)
    }
}

/// Why a lease may be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grounds {
    /// There never was an epoch, or the last holder released it.
    Free,
    /// An operator declared the holder gone.
    Forced,
    /// The last holder's host rebooted.
    Rebooted,
    /// The last holder's heartbeat stood still for this long.
    Silent {
        /// Microseconds counted.
        silent_us: u64,
    },
}

/// Why a lease may not be claimed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Held {
    /// By this very host: adopt it, or release it first.
    #[error("this host holds it already (epoch {epoch})")]
    ByUs {
        /// The epoch.
        epoch: u64,
    },
    /// By a host that may be alive.
    #[error("{holder} holds it (epoch {epoch}) and has not been silent for long enough")]
    ByOther {
        /// Who.
        holder: Holder,
        /// The epoch.
        epoch: u64,
    },
}

/// Whether the lease whose last epoch is `last` may be claimed. `verdict` is what its
/// holder's heartbeat says.
pub fn grounds(
    me: &Identity,
    last: Option<&LeaseRecord>,
    verdict: Verdict,
) -> Result<Grounds, Held> {
    let Some(record) = last else {
        return Ok(Grounds::Free);
    };
    let Some(holder) = &record.holder else {
        let forced = record.grant == Grant::ForcedFree;
        return Ok(if forced {
            Grounds::Forced
        } else {
            Grounds::Free
        });
    };
    let epoch = record.epoch;
    if me.is_holder(record) {
        return Err(Held::ByUs { epoch });
    }
    if holder.host == me.host {
        return Ok(Grounds::Rebooted);
    }
    match verdict {
        Verdict::Rebooted => Ok(Grounds::Rebooted),
        Verdict::Silent { silent_us } => Ok(Grounds::Silent { silent_us }),
        Verdict::Unknown | Verdict::Watching { .. } => Err(Held::ByOther {
            holder: holder.clone(),
            epoch,
        }),
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Time passed, or the host's hold changed.
    Tick,
    /// Claim the epoch after `last`.
    Claim {
        /// The last epoch there is.
        last: Option<LeaseRecord>,
        /// Why we may.
        grounds: Grounds,
        /// Whether the target can fence: asks for it when the holder did not release.
        can_fence: bool,
    },
    /// The last epoch was found to name us: by our agent's claim, or handed over to us.
    Adopt {
        /// It.
        last: LeaseRecord,
        /// A process of this boot that acted under it died without ending it: its writes may
        /// still be under way, so that a new epoch with fencing is owed.
        died: bool,
    },
    /// Give the lease to `to`. The guest must be paused and its writes complete.
    HandOver {
        /// The next holder, as it said itself when it was ready.
        to: Holder,
    },
    /// Give the lease up. The guest must be stopped and its writes complete.
    Release,
    /// The answer to [`Action::Create`] or [`Action::Settle`].
    Created {
        /// The record the answer is about.
        record: LeaseRecord,
        /// What became of it.
        outcome: Outcome,
    },
    /// The answer to [`Action::Look`]: the last epoch there is.
    Looked {
        /// It, if there is any.
        last: Option<LeaseRecord>,
    },
    /// The answer to [`Action::Fence`].
    Fenced {
        /// The epoch that was asked for.
        epoch: u64,
        /// Whether every disk now lies in a file of that epoch.
        done: bool,
    },
}

/// What became of the exclusive creation of an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is there, it is ours, and it is the last.
    Won,
    /// Another record has this epoch, or there is a later one.
    Lost {
        /// The last epoch there is.
        last: LeaseRecord,
    },
    /// It is not there and can no longer appear.
    Absent,
    /// No answer: it may be there, or may appear yet.
    Unknown,
}

/// What the shell shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Create this epoch exclusively, then look whether it is the last.
    Create(LeaseRecord),
    /// Find out what became of the creation of this epoch; if it is not there, make sure that
    /// it cannot appear any more.
    Settle(LeaseRecord),
    /// Read the last epoch.
    Look,
    /// Bring every disk into a file of this epoch and remove the older ones.
    Fence {
        /// The epoch.
        epoch: u64,
    },
    /// The guest may run.
    Run,
    /// The guest must stand still.
    Pause,
    /// Older epochs than this are history.
    Forget {
        /// The epoch to keep.
        before: u64,
    },
    /// The claim came to nothing: nothing changed for us.
    Refused(Refusal),
    /// It is over: the guest must never run here again under this lease.
    End(Ending),
}

/// Why a wish came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Our own heartbeat is not acknowledged: we could not keep what we get.
    #[error("this host's own heartbeat is not reaching the datastore")]
    NotBeating,
    /// Another was faster.
    #[error("epoch {} was created by another host", last.epoch)]
    Outrun {
        /// The epoch that counts.
        last: LeaseRecord,
    },
    /// The new epoch could not be written, and it is certain that it is not there.
    #[error("the next epoch could not be written")]
    NotWritten,
    /// The lease is not in a state in which this can be asked.
    #[error("the lease is not held at the moment")]
    NotHolding,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// We gave it to another host.
    HandedOver(LeaseRecord),
    /// We gave it up.
    Released(LeaseRecord),
    /// Another has it.
    Lost(LeaseRecord),
}

/// Why an epoch is being created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Claim,
    Renew,
    HandOver,
    Release,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Outside,
    Claiming {
        record: LeaseRecord,
        purpose: Purpose,
        /// What we held before, when we held anything.
        before: Option<LeaseRecord>,
        /// No answer yet: ask for one then.
        settle_at_us: Option<u64>,
    },
    Fencing {
        record: LeaseRecord,
        /// Set when the target cannot fence after all: wait for late writes to die instead.
        wait_until_us: Option<u64>,
    },
    Holding {
        record: LeaseRecord,
        look_at_us: u64,
    },
    Stopped {
        record: LeaseRecord,
        retry_at_us: u64,
    },
    Ended(Ending),
}

/// The state machine.
#[derive(Debug, Clone)]
pub struct Lease {
    me: Identity,
    timing: Timing,
    phase: Phase,
    serial: u64,
    /// The epoch for which fencing is known to be done.
    fenced: u64,
    /// It was not done but made up for by waiting: nothing is owed for it any more.
    waived: bool,
    /// The next epoch has to fence.
    owes_fence: bool,
}

impl Lease {
    /// A lease we have nothing to do with yet.
    pub fn new(me: Identity, timing: Timing) -> Self {
        Self {
            me,
            timing,
            phase: Phase::Outside,
            serial: 0,
            fenced: 0,
            waived: false,
            owes_fence: false,
        }
    }

    /// Who we are.
    pub fn identity(&self) -> &Identity {
        &self.me
    }

    /// The record we hold, while we do or while we hope to continue.
    pub fn record(&self) -> Option<&LeaseRecord> {
        match &self.phase {
            Phase::Fencing { record, .. }
            | Phase::Holding { record, .. }
            | Phase::Stopped { record, .. } => Some(record),
            Phase::Claiming { before, .. } => before.as_ref(),
            Phase::Outside | Phase::Ended(_) => None,
        }
    }

    /// The term under which I/O may be issued as long as the host's hold covers it; none when
    /// no I/O may be issued at all. This is what the gate compares.
    pub fn acting_term(&self) -> Option<u32> {
        match &self.phase {
            Phase::Holding { record, .. } => record.holder.as_ref().map(|holder| holder.term),
            _ => None,
        }
    }

    /// Whether the guest may run and I/O may be issued at `now_us`.
    pub fn may_act(&self, now_us: u64, hold: Hold) -> bool {
        self.acting_term()
            .is_some_and(|term| hold.covers(now_us, term))
    }

    /// How it ended, once it has.
    pub fn ending(&self) -> Option<&Ending> {
        match &self.phase {
            Phase::Ended(ending) => Some(ending),
            _ => None,
        }
    }

    /// When the next [`Event::Tick`] is due at the latest.
    pub fn wake_us(&self, hold: Hold) -> u64 {
        match &self.phase {
            Phase::Outside | Phase::Ended(_) => u64::MAX,
            Phase::Claiming { settle_at_us, .. } => settle_at_us.unwrap_or(u64::MAX),
            Phase::Fencing { wait_until_us, .. } => {
                wait_until_us.unwrap_or(u64::MAX).min(hold.deadline_us())
            }
            Phase::Holding { look_at_us, .. } => hold.deadline_us().min(*look_at_us),
            Phase::Stopped { retry_at_us, .. } => *retry_at_us,
        }
    }

    /// Takes an event and says what to do about it.
    pub fn step(&mut self, now_us: u64, hold: Hold, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        // Whatever happened: if the right to act has run out meanwhile, that comes first.
        self.check_lapse(now_us, hold, &mut actions);
        match event {
            Event::Tick => self.tick(now_us, hold, &mut actions),
            Event::Claim {
                last,
                grounds,
                can_fence,
            } => {
                self.claim(
                    now_us,
                    hold,
                    last.as_ref(),
                    grounds,
                    can_fence,
                    &mut actions,
                );
            }
            Event::Adopt { last, died } => self.adopt(now_us, hold, last, died, &mut actions),
            Event::HandOver { to } => self.hand_over(now_us, hold, to, &mut actions),
            Event::Release => self.release(&mut actions),
            Event::Created { record, outcome } => {
                self.created(now_us, hold, &record, outcome, &mut actions);
            }
            Event::Looked { last } => self.looked(now_us, last, &mut actions),
            Event::Fenced { epoch, done } => {
                self.fence_answered(now_us, hold, epoch, done, &mut actions);
            }
        }
        actions
    }

    fn check_lapse(&mut self, now_us: u64, hold: Hold, actions: &mut Vec<Action>) {
        let (record, paused) = match &self.phase {
            Phase::Holding { record, .. } => (record, true),
            Phase::Fencing { record, .. } => (record, false),
            _ => return,
        };
        if covers(hold, now_us, record) {
            return;
        }
        if paused {
            actions.push(Action::Pause);
        }
        self.phase = Phase::Stopped {
            record: record.clone(),
            retry_at_us: now_us,
        };
    }

    fn tick(&mut self, now_us: u64, hold: Hold, actions: &mut Vec<Action>) {
        let look_us = REACHES_PER_LOOK * self.timing.reach_us();
        match &mut self.phase {
            Phase::Claiming {
                record,
                settle_at_us,
                ..
            } => {
                if settle_at_us.is_some_and(|at_us| now_us >= at_us) {
                    *settle_at_us = None;
                    actions.push(Action::Settle(record.clone()));
                }
            }
            Phase::Fencing {
                record,
                wait_until_us,
            } => {
                if wait_until_us.is_some_and(|until_us| now_us >= until_us) {
                    self.fenced = record.fence;
                    self.waived = true;
                    let record = record.clone();
                    self.enter(now_us, hold, record, actions);
                }
            }
            Phase::Holding { look_at_us, .. } => {
                if now_us >= *look_at_us {
                    *look_at_us = now_us + look_us;
                    actions.push(Action::Look);
                }
            }
            Phase::Stopped { .. } => self.renew(now_us, hold, actions),
            Phase::Outside | Phase::Ended(_) => {}
        }
    }

    fn claim(
        &mut self,
        now_us: u64,
        hold: Hold,
        last: Option<&LeaseRecord>,
        grounds: Grounds,
        can_fence: bool,
        actions: &mut Vec<Action>,
    ) {
        if self.phase != Phase::Outside {
            return actions.push(Action::Refused(Refusal::NotHolding));
        }
        if !hold.is_live(now_us) {
            return actions.push(Action::Refused(Refusal::NotBeating));
        }
        let grant = match grounds {
            Grounds::Free => Grant::Acquired,
            Grounds::Forced | Grounds::Rebooted | Grounds::Silent { .. } => Grant::TakenOver,
        };
        let mut record = self.next(last, grant, Some(self.me.holder(hold.term())));
        if grant == Grant::TakenOver && can_fence {
            record.fence = record.epoch;
        }
        record.note = note(grounds, last);
        self.create(record, Purpose::Claim, None, actions);
    }

    fn adopt(
        &mut self,
        now_us: u64,
        hold: Hold,
        last: LeaseRecord,
        died: bool,
        actions: &mut Vec<Action>,
    ) {
        if self.phase != Phase::Outside {
            return actions.push(Action::Refused(Refusal::NotHolding));
        }
        if !self.me.is_holder(&last) {
            return self.end(Ending::Lost(last), actions);
        }
        self.owes_fence = died;
        if died {
            self.phase = Phase::Stopped {
                record: last,
                retry_at_us: now_us,
            };
            return self.renew(now_us, hold, actions);
        }
        if last.grant == Grant::HandedOver {
            // Who handed it over was acting, so that fencing was done.
            self.fenced = last.fence;
        }
        self.enter(now_us, hold, last, actions);
    }

    fn hand_over(&mut self, now_us: u64, hold: Hold, to: Holder, actions: &mut Vec<Action>) {
        let Phase::Holding { record, .. } = &self.phase else {
            return actions.push(Action::Refused(Refusal::NotHolding));
        };
        debug_assert!(
            covers(hold, now_us, record),
            "a lapse was checked for before"
        );
        let before = record.clone();
        let mut record = self.next(Some(&before), Grant::HandedOver, Some(to));
        record.note.push_str("handed over by ");
        record.note.push_str(&self.me.host);
        self.create(record, Purpose::HandOver, Some(before), actions);
    }

    fn release(&mut self, actions: &mut Vec<Action>) {
        let Some(before) = self.releasable() else {
            return actions.push(Action::Refused(Refusal::NotHolding));
        };
        let mut record = self.next(Some(&before), Grant::Released, None);
        if self.owes_fence {
            record.fence = record.epoch;
        }
        record.note.push_str("released by ");
        record.note.push_str(&self.me.host);
        self.create(record, Purpose::Release, Some(before), actions);
    }

    /// A release writes no data, so that it needs no live hold.
    fn releasable(&self) -> Option<LeaseRecord> {
        match &self.phase {
            Phase::Holding { record, .. }
            | Phase::Stopped { record, .. }
            | Phase::Fencing { record, .. } => Some(record.clone()),
            _ => None,
        }
    }

    fn renew(&mut self, now_us: u64, hold: Hold, actions: &mut Vec<Action>) {
        let Phase::Stopped {
            record,
            retry_at_us,
        } = &mut self.phase
        else {
            return;
        };
        if now_us < *retry_at_us {
            return;
        }
        if !hold.is_live(now_us) {
            *retry_at_us = now_us + RETRY_US / 4;
            return;
        }
        let before = record.clone();
        let holder = Some(self.me.holder(hold.term()));
        let mut record = self.next(Some(&before), Grant::Renewed, holder);
        if self.owes_fence {
            record.fence = record.epoch;
            record.note.push_str("started anew after a crash");
        } else {
            record.note.push_str("came back after a lapse");
        }
        self.create(record, Purpose::Renew, Some(before), actions);
    }

    fn created(
        &mut self,
        now_us: u64,
        hold: Hold,
        answered: &LeaseRecord,
        outcome: Outcome,
        actions: &mut Vec<Action>,
    ) {
        let Phase::Claiming {
            record,
            purpose,
            before,
            settle_at_us,
        } = &mut self.phase
        else {
            return;
        };
        if record.nonce != answered.nonce {
            return;
        }
        let purpose = *purpose;
        match outcome {
            Outcome::Unknown => *settle_at_us = Some(now_us + RETRY_US),
            Outcome::Won => {
                let record = record.clone();
                self.owes_fence = false;
                actions.push(Action::Forget {
                    before: record.epoch,
                });
                match purpose {
                    Purpose::Claim | Purpose::Renew => self.enter(now_us, hold, record, actions),
                    Purpose::HandOver => self.end(Ending::HandedOver(record), actions),
                    Purpose::Release => self.end(Ending::Released(record), actions),
                }
            }
            Outcome::Lost { last } => {
                if purpose == Purpose::Claim {
                    self.phase = Phase::Outside;
                    actions.push(Action::Refused(Refusal::Outrun { last }));
                } else {
                    self.end(Ending::Lost(last), actions);
                }
            }
            Outcome::Absent => {
                let before = before.take();
                actions.push(Action::Refused(Refusal::NotWritten));
                match before {
                    None => self.phase = Phase::Outside,
                    Some(before) if purpose == Purpose::Renew => {
                        let retry_at_us = now_us + RETRY_US;
                        self.phase = Phase::Stopped {
                            record: before,
                            retry_at_us,
                        };
                    }
                    Some(before) => self.enter(now_us, hold, before, actions),
                }
            }
        }
    }

    /// The last epoch is ours: fence if that is owed, and act if the hold still covers it.
    fn enter(&mut self, now_us: u64, hold: Hold, record: LeaseRecord, actions: &mut Vec<Action>) {
        if !covers(hold, now_us, &record) {
            self.phase = Phase::Stopped {
                record,
                retry_at_us: now_us,
            };
            return self.renew(now_us, hold, actions);
        }
        if record.fence > self.fenced {
            actions.push(Action::Fence {
                epoch: record.fence,
            });
            self.phase = Phase::Fencing {
                record,
                wait_until_us: None,
            };
            return;
        }
        let look_at_us = now_us + REACHES_PER_LOOK * self.timing.reach_us();
        self.phase = Phase::Holding { record, look_at_us };
        actions.push(Action::Run);
    }

    fn fence_answered(
        &mut self,
        now_us: u64,
        hold: Hold,
        epoch: u64,
        done: bool,
        actions: &mut Vec<Action>,
    ) {
        if done {
            self.fenced = self.fenced.max(epoch);
        }
        let Phase::Fencing {
            record,
            wait_until_us,
        } = &mut self.phase
        else {
            return;
        };
        if record.fence != epoch {
            return;
        }
        if done {
            let record = record.clone();
            self.enter(now_us, hold, record, actions);
        } else {
            // The watch was cut short in the hope of this fence: make up for it now.
            *wait_until_us = Some(now_us + self.timing.in_flight_wait_us());
        }
    }

    fn looked(&mut self, _now_us: u64, last: Option<LeaseRecord>, actions: &mut Vec<Action>) {
        let Phase::Holding { record, .. } = &self.phase else {
            return;
        };
        if let Some(last) = last
            && last.epoch > record.epoch
        {
            actions.push(Action::Pause);
            self.end(Ending::Lost(last), actions);
        }
    }

    fn end(&mut self, ending: Ending, actions: &mut Vec<Action>) {
        self.phase = Phase::Ended(ending.clone());
        actions.push(Action::End(ending));
    }

    fn create(
        &mut self,
        record: LeaseRecord,
        purpose: Purpose,
        before: Option<LeaseRecord>,
        actions: &mut Vec<Action>,
    ) {
        actions.push(Action::Create(record.clone()));
        self.phase = Phase::Claiming {
            record,
            purpose,
            before,
            settle_at_us: None,
        };
    }

    fn next(
        &mut self,
        last: Option<&LeaseRecord>,
        grant: Grant,
        holder: Option<Holder>,
    ) -> LeaseRecord {
        self.serial += 1;
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&self.me.salt);
        nonce[8..].copy_from_slice(&self.serial.to_le_bytes());
        LeaseRecord {
            cluster: self.me.cluster,
            subject: self.me.subject.clone(),
            epoch: last.map_or(0, |last| last.epoch) + 1,
            grant,
            holder,
            fence: last.map_or(0, |last| if self.waived { 0 } else { last.fence }),
            nonce,
            note: String::new(),
        }
    }
}

fn covers(hold: Hold, now_us: u64, record: &LeaseRecord) -> bool {
    record
        .holder
        .as_ref()
        .is_some_and(|holder| hold.covers(now_us, holder.term))
}

fn note(grounds: Grounds, last: Option<&LeaseRecord>) -> String {
    let host = last
        .and_then(|last| last.holder.as_ref())
        .map_or("nobody", |h| h.host.as_str());
    match grounds {
        Grounds::Free => String::from("was free"),
        Grounds::Forced => String::from("an operator freed it"),
        Grounds::Rebooted => alloc::format!("{host} rebooted"),
        Grounds::Silent { silent_us } => {
            alloc::format!("{host} was silent for {} ms", silent_us / 1000)
        }
    }
}
