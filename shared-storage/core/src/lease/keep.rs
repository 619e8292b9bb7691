//! Keeping the lease: stopping when the hold runs out, coming back by a new epoch, and looking
//! now and then whether the epoch is still the last.

use alloc::vec::Vec;

use super::{Action, Ending, Lease, Phase, Purpose, RETRY_US, covers};
use crate::hold::Hold;
use crate::record::{Grant, LeaseRecord};

impl Lease {
    pub(super) fn check_lapse(&mut self, now_us: u64, hold: Hold, actions: &mut Vec<Action>) {
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

    pub(super) fn renew(&mut self, now_us: u64, hold: Hold, actions: &mut Vec<Action>) {
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

    pub(super) fn looked(&mut self, last: Option<LeaseRecord>, actions: &mut Vec<Action>) {
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
}
