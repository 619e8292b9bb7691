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

use crate::atomic::{TEMPORARY, names, sync_dir, temporary};
use crate::error::StoreError;
use crate::undelegated;

/// What a guest's disks are called.
const DISK_SUFFIXES: [&str; 3] = [".raw", ".img", ".qcow2"];
const EPOCH_MARK: char = '@';
/// How often a clone starts over because another taker removed its source.
const CLONE_ATTEMPTS: u32 = 8;

/// Fences the disks in one guest's directory.
#[derive(Debug, Clone)]
pub struct DiskFence {
    dir: PathBuf,
    clone: CloneInto,
}

/// Makes the second file share the blocks of the first.
type CloneInto = fn(&File, &File) -> io::Result<()>;

fn reflink(source: &File, target: &File) -> io::Result<()> {
    Ok(ioctl_ficlone(target, source)?)
}

impl DiskFence {
    /// A fence for this directory, if its file system can clone files.
    pub fn probe(dir: &Path) -> Result<Option<Self>, StoreError> {
        let dir = dir.to_owned();
        Ok(can_clone(&dir)?.then_some(Self {
            dir,
            clone: reflink,
        }))
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
            let (from, to) = (
                path_of(&self.dir, disk, newest),
                path_of(&self.dir, disk, epoch),
            );
            match clone(&from, &to, self.clone) {
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

/// The file in which `disk` of the guest in `dir` lies for the holder of `epoch`.
pub fn disk_path(dir: &Path, disk: &str, epoch: u64) -> Result<PathBuf, StoreError> {
    let epochs = epochs_of(dir, disk)?;
    let newest = epochs.into_iter().filter(|of| *of <= epoch).max();
    newest
        .map(|newest| path_of(dir, disk, newest))
        .ok_or_else(|| StoreError::Missing(dir.join(disk)))
}

/// As [`disk_path`] for any path to a disk, with or without an epoch in its name; a path
/// that is no disk in a guest's directory stays as it is.
pub fn resolve(path: &Path, epoch: u64) -> Result<PathBuf, StoreError> {
    let (Some(dir), Some(file)) = (
        path.parent(),
        path.file_name().and_then(|name| name.to_str()),
    ) else {
        return Ok(path.into());
    };
    let (disk, _) = split(file);
    if is_disk(disk) {
        disk_path(dir, disk, epoch)
    } else {
        Ok(path.into())
    }
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

/// Refuses a file to which the guest in `dir` must not write, for no takeover would move it: late
/// writes of a holder that is gone would reach it. Who runs a guest under its lease asks before.
pub fn check_moves(dir: &Path, file: &Path) -> Result<(), StoreError> {
    let name = file.file_name().and_then(|name| name.to_str());
    let real = |path: &Path| path.canonicalize().map_err(StoreError::io("find", path));
    let here = file.parent().map(real).transpose()? == Some(real(dir)?);
    if here && name.is_some_and(|name| is_disk(split(name).0)) {
        return Ok(());
    }
    Err(StoreError::NotFenced {
        path: file.into(),
        dir: dir.into(),
    })
}

/// Is that the name of a guest's disk, without an epoch?
pub fn is_disk(name: &str) -> bool {
    let plain = !name.contains('/') && !name.starts_with(TEMPORARY);
    plain && DISK_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

/// A disk's name and epoch; 0 for one that was never fenced.
pub(crate) fn split(file: &str) -> (&str, u64) {
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

fn clone(from: &Path, to: &Path, clone: CloneInto) -> Result<(), StoreError> {
    let source = undelegated::open(from).map_err(StoreError::io("open", from))?;
    let fresh = temporary(to);
    let cloned = (|| {
        let target = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&fresh)?;
        target.set_permissions(source.metadata()?.permissions())?;
        clone(&source, &target)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(source: &File, target: &File) -> io::Result<()> {
        let (mut source, mut target) = (source, target);
        io::copy(&mut source, &mut target).map(|_| ())
    }

    /// A fence that copies where the file system of the tests cannot clone.
    fn fence(dir: &Path) -> DiskFence {
        DiskFence {
            dir: dir.into(),
            clone: copy,
        }
    }

    fn files(dir: &Path) -> Vec<String> {
        names(dir).unwrap()
    }

    #[test]
    fn every_disk_moves_to_the_epoch_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "root.raw",
            "data.qcow2",
            "swap.img",
            "guest.toml",
            "lease.6",
        ] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fence(dir.path()).fence(7).unwrap();
        assert_eq!(
            files(dir.path()),
            [
                "data.qcow2@7",
                "guest.toml",
                "lease.6",
                "root.raw@7",
                "swap.img@7"
            ]
        );
        assert_eq!(
            fs::read(dir.path().join("root.raw@7")).unwrap(),
            b"root.raw"
        );
        fence(dir.path()).fence(7).unwrap();
        fence(dir.path()).fence(9).unwrap();
        assert_eq!(
            disks(dir.path()).unwrap(),
            ["data.qcow2", "root.raw", "swap.img"]
        );
        assert_eq!(
            disk_path(dir.path(), "root.raw", 9).unwrap(),
            dir.path().join("root.raw@9")
        );
    }

    #[test]
    fn a_late_write_of_the_old_holder_lands_nowhere() {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.raw");
        fs::write(&path, "before").unwrap();
        let old = OpenOptions::new().write(true).open(&path).unwrap();
        fence(dir.path()).fence(2).unwrap();
        old.write_all_at(b"after!", 0).unwrap();
        assert_eq!(fs::read(dir.path().join("root.raw@2")).unwrap(), b"before");
    }

    #[test]
    fn a_late_taker_neither_harms_nor_finds_the_disk_of_a_later_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("root.raw"), "data").unwrap();
        fence(dir.path()).fence(6).unwrap();
        fence(dir.path()).fence(7).unwrap();
        fence(dir.path()).fence(6).unwrap();
        assert_eq!(files(dir.path()), ["root.raw@7"]);
        let missing = disk_path(dir.path(), "root.raw", 6).unwrap_err();
        assert!(matches!(missing, StoreError::Missing(_)));
    }

    #[test]
    fn a_fence_that_was_cut_short_is_completed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("root.raw"), "old").unwrap();
        fs::write(dir.path().join("root.raw@5"), "new").unwrap();
        fence(dir.path()).fence(5).unwrap();
        assert_eq!(files(dir.path()), ["root.raw@5"]);
        assert_eq!(fs::read(dir.path().join("root.raw@5")).unwrap(), b"new");
    }

    #[test]
    fn paths_are_resolved_with_and_without_an_epoch() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("root.raw@5"), "").unwrap();
        for given in ["root.raw", "root.raw@3", "root.raw@5"] {
            let resolved = resolve(&dir.path().join(given), 8).unwrap();
            assert_eq!(resolved, dir.path().join("root.raw@5"));
        }
        let kernel = dir.path().join("vmlinux");
        assert_eq!(resolve(&kernel, 8).unwrap(), kernel);
    }

    #[test]
    fn what_a_takeover_would_not_move_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (guest, other) = (dir.path().join("web1"), dir.path().join("web2"));
        fs::create_dir(&guest).unwrap();
        fs::create_dir(&other).unwrap();
        for moved in ["root.raw", "root.raw@5", "swap.img", "../web1/data.qcow2"] {
            check_moves(&guest, &guest.join(moved)).unwrap();
        }
        for stays in ["root.vmdk", "disk", "root.raw@x", "../web2/root.raw", ".."] {
            let refused = check_moves(&guest, &guest.join(stays)).unwrap_err();
            assert!(matches!(refused, StoreError::NotFenced { .. }), "{stays}");
        }
        let said = check_moves(&guest, &other.join("root.raw")).unwrap_err();
        assert!(said.to_string().contains("put it there"), "{said}");
    }

    #[test]
    fn probing_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let fence = DiskFence::probe(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let Some(fence) = fence else {
            ground::skip("this file system cannot clone files");
            return;
        };
        fs::write(dir.path().join("root.raw"), "data").unwrap();
        fence.fence(3).unwrap();
        assert_eq!(fs::read(dir.path().join("root.raw@3")).unwrap(), b"data");
    }
}
