//! One process of a host at a time may hold a guest, and its successor must know how it ended.
//!
//! A file in the host's run directory, locked as long as the process lives. It says under
//! which epoch the process acts, and is emptied when it ends in order: a successor that finds
//! an epoch there knows that writes of the dead may still be under way.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use storage_core::record::{Grant, LeaseRecord};

use crate::error::StoreError;
use crate::keeper::Keeper;

/// How often the lock is tried.
const POLL: Duration = Duration::from_millis(5);

/// Locks a file of the run directory; `false` if another process has it until `give_up`.
pub(crate) fn lock_until(file: &File, path: &Path, give_up: Instant) -> Result<bool, StoreError> {
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < give_up => thread::sleep(POLL),
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(StoreError::io("lock", path)(error.into())),
        }
    }
}

/// The lock, held.
#[derive(Debug)]
pub(super) struct LocalLock(File);

impl LocalLock {
    /// Takes the lock, waiting for another process to end until `give_up`.
    pub(super) fn take(
        keeper: &Keeper,
        subject: &str,
        give_up: Instant,
    ) -> Result<Self, StoreError> {
        let dir = keeper.page().path().with_extension("held");
        fs::create_dir_all(&dir).map_err(StoreError::io("create", &dir))?;
        let path = dir.join(subject);
        let file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(StoreError::io("open", &path))?;
        if lock_until(&file, &path, give_up)? {
            Ok(Self(file))
        } else {
            Err(StoreError::RunsHere(subject.into()))
        }
    }

    /// Whether a process of this boot died while it acted under `last` or an epoch before it
    /// that `last` merely continues.
    pub(super) fn predecessor_died(&self, last: &LeaseRecord) -> bool {
        let mut bytes = [0; 8];
        let acted = self.0.read_exact_at(&mut bytes, 0).is_ok();
        let epoch = u64::from_le_bytes(bytes);
        acted && epoch != 0 && (last.epoch <= epoch || last.grant == Grant::Renewed)
    }

    /// Notes the epoch under which the process acts, or that it does not any more.
    pub(super) fn mark(&self, epoch: Option<u64>) {
        let bytes = epoch.unwrap_or_default().to_le_bytes();
        if let Err(error) = self.0.write_all_at(&bytes, 0) {
            // A mark that stays costs the next start a fence; one that is missing is a risk
            // only if this process also dies within the life of a write.
            tracing::warn!(%error, "cannot note the epoch in the run directory");
        }
    }
}
