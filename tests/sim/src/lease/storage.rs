//! The fake datastore: what lies there at this instant.

use std::collections::{BTreeMap, BTreeSet};

use storage_core::record::{HeartbeatRecord, LeaseRecord};

/// Heartbeats, epochs, and the disk's inodes.
#[derive(Debug, Default)]
pub struct Storage {
    /// By host.
    pub heartbeats: BTreeMap<usize, HeartbeatRecord>,
    /// By epoch.
    pub epochs: BTreeMap<u64, LeaseRecord>,
    /// Creations that were called off: a link that arrives late finds no source.
    pub withdrawn: BTreeSet<[u8; 16]>,
    /// The disk's names: epoch to inode. 0 is the name it was born with.
    pub disks: BTreeMap<u64, u64>,
    inodes: u64,
    /// The highest epoch that ever was.
    pub highest: u64,
}

impl Storage {
    /// A datastore with one guest whose disk has inode 0.
    pub fn new() -> Self {
        Self {
            disks: BTreeMap::from([(0, 0)]),
            ..Self::default()
        }
    }

    /// The last epoch.
    pub fn last(&self) -> Option<&LeaseRecord> {
        self.epochs.last_key_value().map(|(_, record)| record)
    }

    /// `link`: exclusive, and only while the temporary file is there.
    pub fn link(&mut self, record: &LeaseRecord) -> bool {
        if self.withdrawn.contains(&record.nonce) || self.epochs.contains_key(&record.epoch) {
            return false;
        }
        self.highest = self.highest.max(record.epoch);
        self.epochs.insert(record.epoch, record.clone());
        true
    }

    /// Clones the newest disk to `epoch`, if no newer one is there.
    pub fn clone_disk(&mut self, epoch: u64) {
        let newest = self.disks.last_key_value().map_or(0, |(epoch, _)| *epoch);
        if newest < epoch {
            self.inodes += 1;
            self.disks.insert(epoch, self.inodes);
        }
    }

    /// Removes the disks older than the newest.
    pub fn unlink_older(&mut self) {
        let newest = self.disks.last_key_value().map_or(0, |(epoch, _)| *epoch);
        self.disks.retain(|epoch, _| *epoch >= newest);
    }

    /// The inode that a holder of `epoch` may open.
    pub fn open(&self, epoch: u64) -> Option<u64> {
        self.disks
            .range(..=epoch)
            .next_back()
            .map(|(_, inode)| *inode)
    }

    /// Whether `inode` still has a name that counts.
    pub fn is_current(&self, inode: u64) -> bool {
        self.disks
            .last_key_value()
            .is_some_and(|(_, newest)| *newest == inode)
    }
}
