//! Getting the lease: a claim, or taking up what names us already; then the fence, then acting.

use alloc::vec::Vec;

use super::grounds::note;
use super::{Action, Ending, Grounds, Lease, Phase, Purpose, REACHES_PER_LOOK, Refusal, covers};
use crate::hold::Hold;
use crate::record::{Grant, LeaseRecord};

impl Lease {
    pub(super) fn claim(
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

    pub(super) fn adopt(
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

    /// The last epoch is ours: fence if that is owed, and act if the hold still covers it.
    pub(super) fn enter(
        &mut self,
        now_us: u64,
        hold: Hold,
        record: LeaseRecord,
        actions: &mut Vec<Action>,
    ) {
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

    pub(super) fn fence_answered(
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
}
