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
//! One file for each part of that life: `take`, `keep`, `leave`; `epoch` is the creation
//! of an epoch, which all of them come to.
//!
//! Answers of the shell carry the record they answer, and late ones to an older question
//! are ignored.

mod epoch;
mod event;
mod grounds;
mod keep;
mod leave;
mod take;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;

pub use event::{Action, Ending, Event, Outcome, Refusal};
pub use grounds::{Grounds, Held, Identity, grounds};

use crate::hold::Hold;
use crate::record::LeaseRecord;
use crate::timing::Timing;

/// How long to wait before an unanswered question is asked again.
const RETRY_US: u64 = 200_000;
/// How often a holder looks whether its epoch is still the last, in spans of `R`. Within the
/// inequality it always is; this finds an operator's force and a clock that stood still.
const REACHES_PER_LOOK: u64 = 4;

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
            Event::HandOver { to, nonce } => {
                self.hand_over(now_us, hold, to, nonce, &mut actions);
            }
            Event::Release => self.release(&mut actions),
            Event::Created { record, outcome } => {
                self.created(now_us, hold, &record, outcome, &mut actions);
            }
            Event::Looked { last } => self.looked(last, &mut actions),
            Event::Fenced { epoch, done } => {
                self.fence_answered(now_us, hold, epoch, done, &mut actions);
            }
        }
        actions
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
}

fn covers(hold: Hold, now_us: u64, record: &LeaseRecord) -> bool {
    record
        .holder
        .as_ref()
        .is_some_and(|holder| hold.covers(now_us, holder.term))
}
