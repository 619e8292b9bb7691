//! What became of the epoch that was to be created.

use alloc::string::String;
use alloc::vec::Vec;

use super::{Action, Ending, Lease, Outcome, Phase, Purpose, RETRY_US, Refusal};
use crate::hold::Hold;
use crate::record::{Grant, Holder, LeaseRecord};

impl Lease {
    /// The record of the epoch after `last`.
    pub(super) fn next(
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

    pub(super) fn create(
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

    pub(super) fn created(
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
}
