//! The datastore: heartbeat records and lease epochs.

use std::collections::BTreeMap;
use std::rc::Rc;

use storage_core::lease::Outcome;
use storage_core::observer::Sight;
use storage_core::record::{HeartbeatRecord, LeaseRecord};

/// The leader lease's subject.
pub const LEAD: &str = "leader";

/// What lies on the datastore.
#[derive(Default)]
pub struct Storage {
    beats: BTreeMap<usize, Rc<Sight>>,
    leases: BTreeMap<String, LeaseRecord>,
}

impl Storage {
    pub fn write_beat(&mut self, host: usize, record: HeartbeatRecord) {
        self.beats.insert(host, Rc::new(Sight::Beat(record)));
    }

    pub fn beats(&self) -> &BTreeMap<usize, Rc<Sight>> {
        &self.beats
    }

    pub fn last(&self, subject: &str) -> Option<&LeaseRecord> {
        self.leases.get(subject)
    }

    /// Creates the epoch exclusively. Returns the record it replaced, if it won.
    pub fn create(&mut self, record: &LeaseRecord) -> (Outcome, Option<LeaseRecord>) {
        let last = self.leases.get(&record.subject);
        if last.map_or(0, |last| last.epoch) + 1 != record.epoch {
            return (self.settle(record), None);
        }
        let before = self.leases.insert(record.subject.clone(), record.clone());
        (Outcome::Won, before)
    }

    /// What became of this creation.
    pub fn settle(&self, record: &LeaseRecord) -> Outcome {
        match self.leases.get(&record.subject) {
            Some(last) if last.nonce == record.nonce => Outcome::Won,
            Some(last) if last.epoch >= record.epoch => Outcome::Lost { last: last.clone() },
            _ => Outcome::Absent,
        }
    }
}
