//! One guest's directory: everything that the guest is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::document::Revised;
use crate::error::StoreError;
use crate::fence::{self, DiskFence};
use crate::lease::LeaseFiles;
use crate::patience::{ANSWER_LIMIT, within};
use crate::state::{Key, StateStore};

/// A guest's directory.
#[derive(Debug, Clone)]
pub struct GuestDir {
    path: PathBuf,
    name: String,
    cluster: [u8; 16],
    state: Arc<dyn StateStore>,
}

impl GuestDir {
    /// The file with the spec.
    pub const SPEC_FILE: &str = "guest.toml";

    pub(crate) fn new(
        path: PathBuf,
        name: &str,
        cluster: [u8; 16],
        state: Arc<dyn StateStore>,
    ) -> Self {
        Self {
            path,
            name: name.into(),
            cluster,
            state,
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The guest's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The newest revision of its spec.
    pub fn spec<T: DeserializeOwned>(&self) -> Result<Revised<T>, StoreError> {
        self.state.read(&self.key())
    }

    /// Makes `spec` the revision after `expected`; refused when somebody else was faster.
    pub fn update_spec<T: Serialize>(&self, expected: u64, spec: &T) -> Result<u64, StoreError> {
        self.state.update(&self.key(), expected, spec)
    }

    fn key(&self) -> Key {
        Key::Guest(self.name.clone())
    }

    /// The file in which a disk of the spec lies now: a takeover moves it to a new one. For
    /// those who look; who writes opens [`Self::disk_under`] its epoch.
    pub fn disk(&self, name: &str) -> Result<PathBuf, StoreError> {
        fence::disk_path(&self.path, name, u64::MAX)
    }

    /// The file in which a disk of the spec lies for the holder of `epoch`: never that of a
    /// later holder, which a guest that stood still and woke up must not touch. Ask again
    /// after each [`crate::lease::Notice::Run`] that comes before the disk is open.
    pub fn disk_under(&self, name: &str, epoch: u64) -> Result<PathBuf, StoreError> {
        fence::disk_path(&self.path, name, epoch)
    }

    /// Refuses a file to which the guest must not write under its lease.
    pub fn check_moves(&self, file: &Path) -> Result<(), StoreError> {
        fence::check_moves(&self.path, file)
    }

    /// The means to fence its disks, if the file system has them. Does not wait for a silent
    /// storage for long.
    pub fn fence(&self) -> Result<Option<DiskFence>, StoreError> {
        let dir = self.path.clone();
        let probe = move || DiskFence::probe(&dir);
        within(ANSWER_LIMIT, "the look for a fence", &self.name, probe)
    }

    /// Its leases.
    pub fn lease(&self) -> LeaseFiles {
        LeaseFiles::new(&self.path, "lease", &self.name, self.cluster)
    }
}
