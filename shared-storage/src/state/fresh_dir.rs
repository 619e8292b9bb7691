//! A directory that is filled before anybody sees it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::atomic::{sync_dir, temporary};
use crate::error::StoreError;

/// A directory under a temporary name; it goes with this value unless it is published.
#[derive(Debug)]
pub struct FreshDir {
    fresh: PathBuf,
    dir: PathBuf,
}

impl FreshDir {
    /// One that may become `dir`.
    pub fn beside(dir: &Path) -> Result<Self, StoreError> {
        let fresh = temporary(dir);
        fs::create_dir(&fresh).map_err(StoreError::io("create", &fresh))?;
        Ok(Self {
            fresh,
            dir: dir.to_owned(),
        })
    }

    /// Where it can be filled.
    pub fn path(&self) -> &Path {
        &self.fresh
    }

    /// Makes it appear under its name, whole and lasting.
    pub fn publish(self) -> Result<(), StoreError> {
        sync_dir(&self.fresh)?;
        fs::rename(&self.fresh, &self.dir).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => {
                StoreError::Exists(self.dir.clone())
            }
            _ => StoreError::io("create", &self.dir)(error),
        })?;
        sync_dir(self.dir.parent().unwrap_or(Path::new(".")))
    }
}

impl Drop for FreshDir {
    fn drop(&mut self) {
        // Published, it is not here any more.
        let _ = fs::remove_dir_all(&self.fresh);
    }
}
