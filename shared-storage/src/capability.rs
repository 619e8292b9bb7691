//! What the file system under a datastore can do, and what follows for a takeover.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FsWord, fstatfs};
use serde::Serialize;

use crate::atomic::temporary;
use crate::datastore::Datastore;
use crate::error::StoreError;
use crate::fence::can_clone;
use crate::image::lock;

const NFS_MAGIC: FsWord = 0x6969;

/// What was found by trying.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// The file system is NFS.
    pub nfs: bool,
    /// Files can be cloned: a takeover fences at the target.
    pub reflink: bool,
    /// Locks belong to open files: a late write of a host that lost its lock is refused.
    pub ofd_locks: bool,
    /// Reads and writes can pass the cache.
    pub direct_io: bool,
    /// Exclusive `link`, on which every lease rests.
    pub hard_links: bool,
    /// From a host's last heartbeat to the moment at which others may take its guests,
    /// in milliseconds.
    pub takeover_ms: u64,
    /// From a host's last heartbeat to the moment at which a disk that it had locked can be opened,
    /// in milliseconds, give or take a second or two of the server's; none where nobody knows. Where
    /// files can be cloned the lock stays with the file that the dead host had.
    pub disk_ms: Option<u64>,
    /// What an operator should know or change.
    pub advice: Vec<String>,
}

impl Capabilities {
    /// Tries everything in the datastore's root.
    pub fn probe(store: &Datastore) -> Result<Self, StoreError> {
        let root = store.root();
        let nfs = is_nfs(root)?;
        let reflink = can_clone(root)?;
        let (ofd_locks, direct_io, hard_links) = try_files(root)?;
        let timing = store.timing();
        // Worst case: the last heartbeat lands right after a read.
        let takeover_ms = (timing.watch_us(reflink) + timing.interval_us()) / 1000;
        let lock_ms = if nfs && !reflink {
            nfs_lease_ms(root)
        } else {
            Some(0)
        };
        let mut found = Self {
            nfs,
            reflink,
            ofd_locks,
            direct_io,
            hard_links,
            takeover_ms,
            // The server began to count with what it last heard of the host.
            disk_ms: lock_ms.map(|lock_ms| lock_ms.max(takeover_ms)),
            advice: Vec::new(),
        };
        found.advise(root);
        Ok(found)
    }

    fn advise(&mut self, root: &Path) {
        let mut advise = |text: &str| self.advice.push(text.into());
        if !self.hard_links {
            advise("hard links do not work here: leases cannot be taken; use another file system");
        }
        if !self.reflink {
            advise(
                "files cannot be cloned here: a takeover waits in_flight_ms longer; XFS, Btrfs, or \
                 NFSv4.2 on either avoid that",
            );
        }
        if self.nfs && !self.reflink {
            advise(
                "a dead host's lock on a disk lasts as long as the server's NFSv4 lease: lower \
                 /proc/fs/nfsd/nfsv4leasetime for quick restarts",
            );
        }
        if !self.direct_io {
            advise("direct I/O is missing: heartbeats rely on close-to-open consistency");
        }
        if self.nfs {
            for text in mount_advice(root) {
                advise(&text);
            }
        }
    }
}

/// Whether `root` lies on NFS.
pub(crate) fn is_nfs(root: &Path) -> Result<bool, StoreError> {
    let dir = File::open(root).map_err(StoreError::io("open", root))?;
    let stat = fstatfs(&dir).map_err(|error| StoreError::io("look at", root)(error.into()))?;
    Ok(stat.f_type == NFS_MAGIC)
}

/// Locks, direct I/O, hard links.
fn try_files(root: &Path) -> Result<(bool, bool, bool), StoreError> {
    let (one, other) = (
        temporary(&root.join("probe")),
        temporary(&root.join("probe")),
    );
    let tried = (|| {
        let file = OpenOptions::new().write(true).create_new(true).open(&one)?;
        let again = OpenOptions::new().write(true).open(&one)?;
        let take = |file| lock::take(file, lock::Kind::Exclusive);
        let locks = take(&file).unwrap_or(false) && !take(&again).unwrap_or(true);
        let direct = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(&one)
            .is_ok();
        let links = fs::hard_link(&one, &other).is_ok() && fs::hard_link(&one, &other).is_err();
        Ok((locks, direct, links))
    })();
    let _ = fs::remove_file(&one);
    let _ = fs::remove_file(&other);
    tried.map_err(StoreError::io("write into", root))
}

/// How long the server believes in a client that it does not hear, as the kernel knows it.
fn nfs_lease_ms(root: &Path) -> Option<u64> {
    let table = fs::read_to_string("/proc/self/mountstats").ok()?;
    lease_in(&table, &root.canonicalize().ok()?)
}

/// The same from this text.
fn lease_in(table: &str, root: &Path) -> Option<u64> {
    let mut found: Option<(usize, u64)> = None;
    let mut here = None;
    for line in table.lines() {
        if let Some((_, rest)) = line.split_once(" mounted on ") {
            let point = rest.split(' ').next()?;
            here = root.starts_with(point).then_some(point.len());
        }
        let lease = line
            .split(',')
            .find_map(|word| word.strip_prefix("lease_time="));
        if let (Some(length), Some(lease)) = (here, lease)
            && found.is_none_or(|(longest, _)| length >= longest)
        {
            found = Some((length, lease.parse::<u64>().ok()? * 1000));
        }
    }
    found.map(|(_, lease_ms)| lease_ms)
}

/// Mount options that make an NFS client see the others' changes too late, or never answer.
fn mount_advice(root: &Path) -> Vec<String> {
    let Ok(table) = fs::read_to_string("/proc/self/mounts") else {
        return Vec::new();
    };
    let Ok(root) = root.canonicalize() else {
        return Vec::new();
    };
    let mounts = table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (_, point, _, options) = (
            fields.next()?,
            fields.next()?,
            fields.next()?,
            fields.next()?,
        );
        root.starts_with(point).then_some((point, options))
    });
    let Some((_, options)) = mounts.max_by_key(|(point, _)| point.len()) else {
        return Vec::new();
    };
    let has = |wanted: &str| options.split(',').any(|option| option == wanted);
    let mut advice = Vec::new();
    if !has("lookupcache=pos") && !has("lookupcache=positive") && !has("lookupcache=none") {
        advice.push("mount with lookupcache=positive: new files stay invisible otherwise".into());
    }
    if has("soft") {
        advice.push("mount with `hard`: a soft mount loses writes when the server restarts".into());
    }
    if has("nocto") {
        advice.push("mount without `nocto`: leases rely on close-to-open consistency".into());
    }
    if has("vers=3") {
        advice.push("mount with vers=4.2: version 3 has neither fencing locks nor clones".into());
    }
    advice
}

#[cfg(test)]
mod tests {
    use storage_core::timing::Timing;

    use super::*;
    use crate::cluster_file::ClusterFile;

    #[test]
    fn a_local_directory_is_good_enough() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = ClusterFile::new("test", Timing::default());
        let store = Datastore::create(dir.path(), &cluster).unwrap();
        let found = Capabilities::probe(&store).unwrap();
        assert!(
            found.hard_links && found.ofd_locks && !found.nfs,
            "{found:?}"
        );
        let limit_ms = if found.reflink { 2000 } else { 4000 };
        assert!(found.takeover_ms < limit_ms, "{found:?}");
        assert_eq!(found.disk_ms, Some(found.takeover_ms));
        assert!(store.leftovers().unwrap().is_empty());
    }

    #[test]
    fn the_servers_lease_is_read_for_the_mount_that_counts() {
        let table = "\
device /dev/vda mounted on / with fstype ext4
device storage:/ mounted on /srv with fstype nfs4 statvers=1.1
\topts:\trw,vers=4.2,hard
\tnfsv4:\tbm0=0xf8f3b77e,bm1=0x40b0be3a,acl=0x3,sessions,pnfs=not configured,lease_time=90,lease_expired=0
device storage:/vmstore mounted on /srv/vmstore with fstype nfs4 statvers=1.1
\tnfsv4:\tbm0=0xf8f3b77e,lease_time=10,lease_expired=0
device tmpfs mounted on /run with fstype tmpfs
";
        let lease = |root: &str| lease_in(table, Path::new(root));
        assert_eq!(lease("/srv/vmstore/a"), Some(10_000));
        assert_eq!(lease("/srv"), Some(90_000));
        assert_eq!(lease("/home"), None);
    }
}
