//! The epochs of one lease as files `<stem>.<epoch>`.
//!
//! The last epoch counts. Creating one is a `link` of a synced temporary file, atomic on
//! every file system that hosts can share. Its answer can get lost, so that who asked must
//! be able to find out: no two records have one nonce, so that it succeeded exactly when the
//! epoch has ours. Removing the temporary file makes sure that a request still under way fails.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use storage_core::lease::Outcome;
use storage_core::record::{Grant, LEASE_BYTES_LIMIT, LeaseRecord};

use crate::atomic::{TEMPORARY, names, read_limited, sync_dir, temporary, write_synced};
use crate::clock::{boottime_us, random};
use crate::error::StoreError;
use crate::patience::{ANSWER_LIMIT, within};

/// How often reading starts over because epochs were removed under it.
const READ_ATTEMPTS: u32 = 16;
/// Old epochs that are kept, for people who want to know what happened.
const KEPT_EPOCHS: u64 = 4;

/// Where the epochs of one lease lie.
#[derive(Debug, Clone)]
pub struct LeaseFiles {
    dir: PathBuf,
    stem: String,
    subject: String,
    cluster: [u8; 16],
    patience: Duration,
}

/// How a lease was found, and when. A heartbeat says something about the holder only if it
/// was read after this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The last epoch.
    pub last: Option<LeaseRecord>,
    /// Our boottime clock when the answer came, in microseconds.
    pub read_us: u64,
}

impl LeaseFiles {
    pub(crate) fn new(dir: &Path, stem: &str, subject: &str, cluster: [u8; 16]) -> Self {
        Self {
            dir: dir.into(),
            stem: stem.into(),
            subject: subject.into(),
            cluster,
            patience: ANSWER_LIMIT,
        }
    }

    /// The same, for who does not want to wait longer than this for the storage.
    #[must_use]
    pub fn patient_for(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Has the storage do something, and waits for that as long as our patience lasts.
    fn patiently<T: Send + 'static>(
        &self,
        act: &'static str,
        operation: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let files = self.clone();
        within(self.patience, act, &self.subject, move || operation(&files))
    }

    /// What is leased.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The cluster it belongs to.
    pub fn cluster(&self) -> [u8; 16] {
        self.cluster
    }

    /// The directory that holds the epochs, and the disks of a guest.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The last epoch. A record of another guest or cluster (the directory is a copy) counts
    /// as free: its holder's right is to the original.
    pub fn last(&self) -> Result<Option<LeaseRecord>, StoreError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let Some(epoch) = self.epochs()?.last().copied() else {
                return Ok(None);
            };
            match self.read(epoch) {
                Ok(record) => return Ok(Some(record)),
                // A later epoch was created and this one removed since we listed.
                Err(error) if attempt < READ_ATTEMPTS && is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The last epoch, and when it was read. Does not wait for a silent storage for long.
    pub fn look(&self) -> Result<Seen, StoreError> {
        self.patiently("the look at the lease", |files| {
            let last = files.last()?;
            let read_us = boottime_us();
            Ok(Seen { last, read_us })
        })
    }

    /// All epochs that are kept, oldest first; damaged ones are left out.
    pub fn history(&self) -> Result<Vec<LeaseRecord>, StoreError> {
        Ok(self
            .epochs()?
            .into_iter()
            .filter_map(|epoch| self.read(epoch).ok())
            .collect())
    }

    /// Creates an epoch exclusively. Never says [`Outcome::Absent`] or [`Outcome::Won`] when
    /// it might be otherwise.
    pub fn create(&self, record: &LeaseRecord) -> Outcome {
        let temporary = self.temporary(record);
        let epoch = self.path(record.epoch);
        if let Err(error) = write_synced(&temporary, &record.encode()) {
            tracing::warn!(%error, subject = self.subject, "cannot prepare an epoch");
            // Never linked, so that it cannot appear.
            return if temporary.exists() {
                self.settle(record)
            } else {
                Outcome::Absent
            };
        }
        match fs::hard_link(&temporary, &epoch) {
            Ok(()) => self.confirm(record, &temporary),
            Err(error) => {
                tracing::debug!(%error, subject = self.subject, "creating an epoch failed");
                self.settle(record)
            }
        }
    }

    /// How long [`Self::create`] takes now, found out by going the same way with other names.
    /// Does not wait for a silent storage for long.
    pub fn rehearse(&self) -> Result<Duration, StoreError> {
        self.patiently("the rehearsal of a hand-over", Self::rehearse_now)
    }

    fn rehearse_now(&self) -> Result<Duration, StoreError> {
        let began = Instant::now();
        let stem = self.dir.join(&self.stem);
        let (first, second) = (temporary(&stem), temporary(&stem));
        let took = write_synced(&first, &[0; LEASE_BYTES_LIMIT]).and_then(|()| {
            fs::hard_link(&first, &second).map_err(StoreError::io("link", &second))?;
            sync_dir(&self.dir)?;
            self.epochs()?;
            Ok(began.elapsed())
        });
        for path in [first, second] {
            // What stays is swept by the host that leads.
            let _ = fs::remove_file(path);
        }
        took
    }

    /// Finds out what became of [`Self::create`] and makes sure that it stays so.
    pub fn settle(&self, record: &LeaseRecord) -> Outcome {
        let temporary = self.temporary(record);
        // First this: a link request still under way finds no source any more.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Outcome::Unknown,
            _ => {}
        }
        if sync_dir(&self.dir).is_err() {
            return Outcome::Unknown;
        }
        match self.last() {
            Ok(Some(last)) if last.nonce == record.nonce => Outcome::Won,
            Ok(Some(last)) if last.epoch >= record.epoch => Outcome::Lost { last },
            Ok(_) => Outcome::Absent,
            Err(_) => Outcome::Unknown,
        }
    }

    /// The link succeeded: make it durable and look whether a later epoch exists. One can,
    /// when we were so slow that our epoch had come and gone before.
    fn confirm(&self, record: &LeaseRecord, temporary: &Path) -> Outcome {
        if sync_dir(&self.dir).is_err() {
            return Outcome::Unknown;
        }
        match self.epochs() {
            Ok(epochs) if epochs.last() == Some(&record.epoch) => {
                // What stays is swept by the host that leads.
                let _ = fs::remove_file(temporary);
                Outcome::Won
            }
            Ok(_) => {
                let _ = fs::remove_file(self.path(record.epoch));
                self.settle(record)
            }
            Err(_) => Outcome::Unknown,
        }
    }

    /// Removes epochs so long before this one that nobody needs them any more.
    pub fn forget(&self, before: u64) {
        let Ok(epochs) = self.epochs() else { return };
        for epoch in epochs
            .into_iter()
            .filter(|epoch| epoch + KEPT_EPOCHS < before)
        {
            let _ = fs::remove_file(self.path(epoch));
        }
    }

    /// Declares the holder gone, whatever it does: the operator knows better. Whoever it was,
    /// if the last epoch is damaged: nobody can claim that, and only this helps. Does not wait for
    /// a silent storage for long; it may still happen then.
    pub fn force_free(&self, note: &str) -> Result<LeaseRecord, StoreError> {
        let note = note.to_owned();
        self.patiently("the freeing of the lease", move |files| {
            files.force_free_now(&note)
        })
    }

    fn force_free_now(&self, note: &str) -> Result<LeaseRecord, StoreError> {
        let (epoch, fence) = match self.last() {
            Ok(last) => last.map_or((0, 0), |last| (last.epoch, last.fence)),
            // What fencing it owed is unknown; whoever claims after a force fences anew.
            Err(error) if error.is_damage() => (self.epochs()?.last().copied().unwrap_or(0), 0),
            Err(error) => return Err(error),
        };
        let record = LeaseRecord {
            cluster: self.cluster,
            subject: self.subject.clone(),
            epoch: epoch + 1,
            grant: Grant::ForcedFree,
            holder: None,
            fence,
            nonce: random(),
            note: note.into(),
        };
        match self.create(&record) {
            Outcome::Won => Ok(record),
            Outcome::Lost { last } => Err(StoreError::Changed {
                path: self.path(record.epoch),
                expected: record.epoch - 1,
                found: last.epoch,
            }),
            Outcome::Absent | Outcome::Unknown => Err(StoreError::Io {
                act: "create",
                path: self.path(record.epoch),
                source: io::Error::other("the datastore did not answer as it should"),
            }),
        }
    }

    fn epochs(&self) -> Result<Vec<u64>, StoreError> {
        let epoch = |name: &String| {
            name.strip_prefix(&self.stem)?
                .strip_prefix('.')?
                .parse()
                .ok()
        };
        let mut epochs: Vec<u64> = names(&self.dir)?.iter().filter_map(epoch).collect();
        epochs.sort_unstable();
        Ok(epochs)
    }

    fn read(&self, epoch: u64) -> Result<LeaseRecord, StoreError> {
        let path = self.path(epoch);
        let bytes = read_limited(&path, LEASE_BYTES_LIMIT as u64)?;
        let record = LeaseRecord::decode(&bytes).map_err(|source| StoreError::Record {
            path: path.clone(),
            source,
        })?;
        if record.epoch != epoch {
            let why = format!("it says that it is epoch {}", record.epoch);
            return Err(StoreError::Invalid { path, why });
        }
        if record.subject != self.subject || record.cluster != self.cluster {
            let note = format!("a copy of {} brought it along", record.subject);
            let (subject, cluster) = (self.subject.clone(), self.cluster);
            let free = LeaseRecord {
                grant: Grant::Released,
                holder: None,
                ..record
            };
            return Ok(LeaseRecord {
                subject,
                cluster,
                note,
                ..free
            });
        }
        Ok(record)
    }

    fn path(&self, epoch: u64) -> PathBuf {
        self.dir.join(format!("{}.{epoch}", self.stem))
    }

    fn temporary(&self, record: &LeaseRecord) -> PathBuf {
        let unique = u128::from_be_bytes(record.nonce);
        self.dir.join(format!(
            "{TEMPORARY}{}.{}-{unique:032x}",
            self.stem, record.epoch
        ))
    }
}

fn is_gone(error: &StoreError) -> bool {
    matches!(
        error.io_kind(),
        Some(io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle)
    )
}
