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

mod event;
mod grounds;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec::Vec;

pub use event::{Action, Ending, Event, Outcome, Refusal};
use grounds::note;
pub use grounds::{Grounds, Held, Identity, grounds};

use crate::hold::Hold;
use crate::record::{Grant, Holder, LeaseRecord};
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

    fn hand_over(
        &mut self,
        now_us: u64,
        hold: Hold,
        to: Holder,
        nonce: [u8; 16],
        actions: &mut Vec<Action>,
    ) {
        let Phase::Holding { record, .. } = &self.phase else {
            return actions.push(Action::Refused(Refusal::NotHolding));
        };
        debug_assert!(
            covers(hold, now_us, record),
            "a lapse was checked for before"
        );
        let before = record.clone();
        let mut record = self.next(Some(&before), Grant::HandedOver, Some(to));
        record.nonce = nonce;
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
