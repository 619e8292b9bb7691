//! Files that appear whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::clock::random;
use crate::error::StoreError;
use crate::undelegated;

/// Temporary files and directories start with this; [`crate::Datastore::sweep`] removes old ones.
pub(crate) const TEMPORARY: &str = ".new-";

/// A name beside `path` that nobody else uses.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unique = u64::from_le_bytes(random());
    path.with_file_name(format!("{TEMPORARY}{name}-{unique:016x}"))
}

/// Writes and syncs a new file.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    })();
    written.map_err(|error| {
        // What is half written must not stay; if it does, its name says that it may go.
        let _ = fs::remove_file(path);
        StoreError::io("write", path)(error)
    })
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    match synced {
        // Some network file systems make directory changes durable at once and refuse this.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other.map_err(StoreError::io("sync", dir)),
    }
}

/// Replaces the file at `path`, whole.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let fresh = temporary(path);
    write_synced(&fresh, bytes)?;
    fs::rename(&fresh, path).map_err(|error| {
        let _ = fs::remove_file(&fresh);
        StoreError::io("replace", path)(error)
    })?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Reads a file of at most `limit` bytes.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    let read =
        undelegated::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes));
    read.map_err(StoreError::io("read", path))?;
    if bytes.len() as u64 > limit {
        let bytes = fs::metadata(path).map_or(limit + 1, |meta| meta.len());
        return Err(StoreError::TooLarge {
            path: path.into(),
            bytes,
            limit,
        });
    }
    Ok(bytes)
}

/// The names in a directory that are text, temporary ones left out, in order.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
        let entry = entry.map_err(StoreError::io("list", dir))?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_whole_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(read_limited(&path, 3).unwrap(), b"two");
        assert_eq!(names(dir.path()).unwrap(), ["file"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = read_limited(&path, 2).unwrap_err().to_string();
        assert!(error.contains("3 bytes, more than the 2"), "{error}");
    }
}
