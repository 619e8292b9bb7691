//! Letting the lease go: to another host, or to whoever comes first.

use alloc::vec::Vec;

use super::{Action, Ending, Lease, Phase, Purpose, Refusal, covers};
use crate::hold::Hold;
use crate::record::{Grant, Holder, LeaseRecord};

impl Lease {
    pub(super) fn hand_over(
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

    pub(super) fn release(&mut self, actions: &mut Vec<Action>) {
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
    pub(super) fn releasable(&self) -> Option<LeaseRecord> {
        match &self.phase {
            Phase::Holding { record, .. }
            | Phase::Stopped { record, .. }
            | Phase::Fencing { record, .. } => Some(record.clone()),
            _ => None,
        }
    }

    pub(super) fn end(&mut self, ending: Ending, actions: &mut Vec<Action>) {
        self.phase = Phase::Ended(ending.clone());
        actions.push(Action::End(ending));
    }
}
