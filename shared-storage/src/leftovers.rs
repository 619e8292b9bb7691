//! What a crash in the midst of a write left behind: temporary files and directories.
//!
//! All that appears whole was made under a temporary name beforehand. Whoever dies in between
//! leaves that; it is never read, only takes room. Whoever is merely slow keeps what it makes: a
//! leftover is swept when nobody has written to it for a day, by the storage's own clock. Were it
//! swept all the same, its maker would find it gone and fail; nothing half made would appear.

use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::atomic::{TEMPORARY, names, temporary};
use crate::datastore::{DIRECTORIES, Datastore};
use crate::error::StoreError;

/// What nobody has written to for so long is nobody's.
const ABANDONED_AFTER: Duration = Duration::from_hours(24);
/// Most that are removed in one sweep.
const SWEPT_MAX: usize = 256;

impl Datastore {
    /// Temporary files and directories, wherever they are.
    pub fn leftovers(&self) -> Result<Vec<PathBuf>, StoreError> {
        let mut found = Vec::new();
        let mut dirs = vec![self.root().to_owned()];
        for parent in DIRECTORIES {
            let parent = self.root().join(parent);
            dirs.extend(names(&parent)?.into_iter().map(|name| parent.join(name)));
            dirs.push(parent);
        }
        for dir in dirs.into_iter().filter(|dir| dir.is_dir()) {
            let entries = match fs::read_dir(&dir) {
                // A guest that was removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(StoreError::io("list", &dir))?,
            };
            for entry in entries {
                let entry = entry.map_err(StoreError::io("list", &dir))?;
                if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                    found.push(entry.path());
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Removes the leftovers that nobody can be writing any more; says what went.
    pub fn sweep(&self) -> Result<Vec<PathBuf>, StoreError> {
        let mut swept = self.leftovers()?;
        if swept.is_empty() {
            return Ok(swept);
        }
        let now = self.now()?;
        swept.retain(|path| is_abandoned(path, now));
        swept.truncate(SWEPT_MAX);
        for path in &swept {
            match remove(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", path)(error));
                }
                // Another host may sweep, too.
                _ => {}
            }
        }
        Ok(swept)
    }

    /// The storage's own clock, which is not this host's.
    fn now(&self) -> Result<SystemTime, StoreError> {
        let path = temporary(&self.root().join("clock"));
        let now = File::create_new(&path).and_then(|file| file.metadata()?.modified());
        let removed = fs::remove_file(&path);
        let now = now.map_err(StoreError::io("write", &path))?;
        removed.map_err(StoreError::io("remove", &path))?;
        Ok(now)
    }
}

/// Has nobody written to it, nor to anything in it, for long enough? What cannot be looked at has
/// a maker.
fn is_abandoned(path: &Path, now: SystemTime) -> bool {
    let old = |metadata: Metadata| {
        let modified = metadata.modified().ok()?;
        let age = now.duration_since(modified).ok()?;
        (age >= ABANDONED_AFTER).then_some(())
    };
    let look = || {
        old(fs::symlink_metadata(path).ok()?)?;
        if path.is_dir() {
            for entry in fs::read_dir(path).ok()? {
                old(entry.ok()?.metadata().ok()?)?;
            }
        }
        Some(())
    };
    look().is_some()
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

#[cfg(test)]
mod tests {
    use storage_core::timing::Timing;

    use super::*;
    use crate::ClusterFile;

    const DAY: Duration = Duration::from_hours(24);

    fn make(path: PathBuf, age: Duration) -> PathBuf {
        let file = File::create_new(&path).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
        path
    }

    fn make_dir(path: PathBuf, inside: Duration, age: Duration) -> PathBuf {
        fs::create_dir(&path).unwrap();
        make(path.join("disk0.raw"), inside);
        let dir = File::open(&path).unwrap();
        dir.set_modified(SystemTime::now() - age).unwrap();
        path
    }

    #[test]
    fn what_nobody_has_written_to_for_a_day_is_swept_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let store =
            Datastore::create(dir.path(), &ClusterFile::new("test", Timing::default())).unwrap();
        let guest = store.create_guest("web1", &toml::Table::new(), |_| Ok(()));
        let guest = guest.unwrap().path().to_owned();
        let root = store.root();
        let old = [
            make(root.join(".new-policy.toml-1"), 2 * DAY),
            make(guest.join(".new-lease.3-2"), 30 * DAY),
            make_dir(root.join("guests/.new-web2-3"), 2 * DAY, 2 * DAY),
        ];
        let young = [
            make(root.join("images/.new-image-4"), DAY / 2),
            make(guest.join(".new-ahead-5"), Duration::ZERO),
            // Its disk is still being written.
            make_dir(root.join("guests/.new-web3-6"), DAY / 2, 2 * DAY),
        ];
        // Not temporary, however old.
        let kept = make(guest.join("disk1.raw"), 100 * DAY);
        make(guest.join(".hidden"), 100 * DAY);

        let mut expected = old.to_vec();
        expected.sort();
        assert_eq!(store.sweep().unwrap(), expected);
        let mut left = young.to_vec();
        left.sort();
        assert_eq!(store.leftovers().unwrap(), left);
        assert!(kept.exists() && guest.join(".hidden").exists());
        assert!(store.sweep().unwrap().is_empty());
    }

    #[test]
    fn one_sweep_is_bounded_and_the_next_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let store =
            Datastore::create(dir.path(), &ClusterFile::new("test", Timing::default())).unwrap();
        for n in 0..SWEPT_MAX + 3 {
            make(store.root().join(format!(".new-x-{n}")), 2 * DAY);
        }
        assert_eq!(store.sweep().unwrap().len(), SWEPT_MAX);
        assert_eq!(store.sweep().unwrap().len(), 3);
        assert!(store.leftovers().unwrap().is_empty());
    }
}
