//! Fencing at the target: late writes of a holder that is gone land nowhere.
//!
//! A guest's disk lies in `<disk>` or in `<disk>@<epoch>`; the highest epoch counts. Who
//! takes a guest over clones each disk to an inode of its own epoch and removes the older
//! ones. A write that the old holder still issues goes to an inode without a name. A taker
//! that is itself late makes a file of an epoch that nobody looks at.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::ioctl_ficlone;

use crate::atomic::{names, sync_dir, temporary};
use crate::error::StoreError;

/// What a guest's disks are called.
const DISK_SUFFIXES: [&str; 2] = [".raw", ".qcow2"];
const EPOCH_MARK: char = '@';
/// How often a clone starts over because another taker removed its source.
const CLONE_ATTEMPTS: u32 = 8;

/// Fences the disks in one guest's directory.
#[derive(Debug, Clone)]
pub struct DiskFence {
    dir: PathBuf,
}

impl DiskFence {
    /// A fence for this directory, if its file system can clone files.
    pub fn probe(dir: &Path) -> Result<Option<Self>, StoreError> {
        let dir = dir.to_owned();
        Ok(can_clone(&dir)?.then_some(Self { dir }))
    }

    /// Brings every disk into a file of `epoch` or later, and removes the older ones. May be
    /// repeated after a crash at any point.
    pub fn fence(&self, epoch: u64) -> Result<(), StoreError> {
        for disk in disks(&self.dir)? {
            self.fence_disk(&disk, epoch)?;
        }
        sync_dir(&self.dir)
    }

    fn fence_disk(&self, disk: &str, epoch: u64) -> Result<(), StoreError> {
        let mut attempt = 0;
        let newest = loop {
            attempt += 1;
            let newest = newest_epoch(&self.dir, disk)?;
            if newest >= epoch {
                break newest;
            }
            match clone(
                &path_of(&self.dir, disk, newest),
                &path_of(&self.dir, disk, epoch),
            ) {
                Ok(()) => break epoch,
                Err(error)
                    if attempt < CLONE_ATTEMPTS
                        && matches!(
                            error.io_kind(),
                            Some(io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle)
                        ) => {}
                Err(error) => return Err(error),
            }
        };
        // Before anybody runs on the new one: while an old one has its name, a contender with
        // an old listing could take it for the disk.
        for old in epochs_of(&self.dir, disk)?
            .into_iter()
            .filter(|old| *old < newest)
        {
            let path = path_of(&self.dir, disk, old);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The file in which `disk` of the guest in `dir` lies now.
pub fn disk_path(dir: &Path, disk: &str) -> Result<PathBuf, StoreError> {
    Ok(path_of(dir, disk, newest_epoch(dir, disk)?))
}

/// The names of the disks in `dir`, without epochs, in order.
pub fn disks(dir: &Path) -> Result<Vec<String>, StoreError> {
    let mut disks: Vec<String> = names(dir)?
        .iter()
        .map(|name| split(name).0.to_owned())
        .filter(|name| is_disk(name))
        .collect();
    disks.sort();
    disks.dedup();
    Ok(disks)
}

fn is_disk(name: &str) -> bool {
    DISK_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

/// A disk's name and epoch; 0 for one that was never fenced.
fn split(file: &str) -> (&str, u64) {
    let marked = file.rsplit_once(EPOCH_MARK);
    marked
        .and_then(|(disk, epoch)| Some((disk, epoch.parse().ok()?)))
        .unwrap_or((file, 0))
}

fn path_of(dir: &Path, disk: &str, epoch: u64) -> PathBuf {
    if epoch == 0 {
        dir.join(disk)
    } else {
        dir.join(format!("{disk}{EPOCH_MARK}{epoch}"))
    }
}

fn epochs_of(dir: &Path, disk: &str) -> Result<Vec<u64>, StoreError> {
    let names = names(dir)?;
    Ok(names
        .iter()
        .map(|name| split(name))
        .filter(|(name, _)| *name == disk)
        .map(|(_, e)| e)
        .collect())
}

fn newest_epoch(dir: &Path, disk: &str) -> Result<u64, StoreError> {
    let newest = epochs_of(dir, disk)?.into_iter().max();
    newest.ok_or_else(|| StoreError::Missing(dir.join(disk)))
}

fn clone(from: &Path, to: &Path) -> Result<(), StoreError> {
    let source = File::open(from).map_err(StoreError::io("open", from))?;
    let fresh = temporary(to);
    let cloned = (|| {
        let target = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&fresh)?;
        target.set_permissions(source.metadata()?.permissions())?;
        ioctl_ficlone(&target, &source)?;
        target.sync_all()?;
        match fs::hard_link(&fresh, to) {
            // Another attempt for the same epoch was faster: as good as ours.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    })();
    let _ = fs::remove_file(&fresh);
    cloned.map_err(StoreError::io("clone", from))
}

/// Whether files in `dir` can be cloned, found out by trying.
pub fn can_clone(dir: &Path) -> Result<bool, StoreError> {
    let (one, other) = (temporary(&dir.join("probe")), temporary(&dir.join("probe")));
    let tried = (|| {
        fs::write(&one, [1; 4096])?;
        let (source, target) = (File::open(&one)?, File::create(&other)?);
        Ok(ioctl_ficlone(&target, &source).is_ok())
    })();
    let _ = fs::remove_file(&one);
    let _ = fs::remove_file(&other);
    tried.map_err(StoreError::io("write into", dir))
}
