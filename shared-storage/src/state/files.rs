//! The datastore's own files as the state store: docs/formats.md has their layout.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use storage_core::name::check_name;

use super::{Document, FreshDir, Key, Kind, StateStore};
use crate::atomic::{self, names, read_limited, sync_dir, temporary, write_synced};
use crate::document::{self, DOCUMENT_BYTES_LIMIT};
use crate::error::StoreError;
use crate::guest_dir::GuestDir;
use crate::undelegated;

const LOG_FILE: &str = "events.jsonl";
const OLDER_LOG_FILE: &str = "events.older.jsonl";
/// A log that has grown to this many bytes becomes the older one; the older one goes.
const LOG_BYTES_MAX: u64 = 1 << 20;
/// A log may be longer by its last line.
const LOG_BYTES_LIMIT: u64 = 2 * LOG_BYTES_MAX;

/// Documents and logs in the datastore at `root`.
#[derive(Debug, Clone)]
pub struct Files {
    root: PathBuf,
}

impl Files {
    /// Those of this datastore.
    pub fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    fn path(&self, key: &Key) -> Result<PathBuf, StoreError> {
        key.check()?;
        Ok(self.root.join(key.place()))
    }

    fn dir(&self, key: &Key) -> Result<PathBuf, StoreError> {
        let mut dir = self.path(key)?;
        dir.pop();
        Ok(dir)
    }

    fn log_files(&self, host: &str) -> Result<[PathBuf; 2], StoreError> {
        let dir = self.dir(&Key::Host(host.into()))?;
        Ok([dir.join(OLDER_LOG_FILE), dir.join(LOG_FILE)])
    }
}

impl StateStore for Files {
    fn list(&self, kind: Kind) -> Result<Vec<String>, StoreError> {
        let dir = self.root.join(match kind {
            Kind::Hosts => "hosts",
            Kind::Guests => "guests",
        });
        let mut names = names(&dir)?;
        names.retain(|name| check_name(name).is_ok() && dir.join(name).is_dir());
        Ok(names)
    }

    fn get(&self, key: &Key) -> Result<Document, StoreError> {
        let path = self.path(key)?;
        if key.has_revisions() {
            return document::read_text(&path);
        }
        match read_limited(&path, DOCUMENT_BYTES_LIMIT) {
            Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => {
                Err(StoreError::Missing(path))
            }
            read => Ok(Document {
                revision: 0,
                text: document::utf8(&path, read?)?,
                place: path,
            }),
        }
    }

    fn put(&self, key: &Key, expected: u64, text: &str) -> Result<(), StoreError> {
        let path = self.path(key)?;
        document::check_length(&path, text)?;
        if key.has_revisions() {
            return document::update_text(&path, expected, text);
        }
        let dir = self.dir(key)?;
        fs::create_dir_all(&dir).map_err(StoreError::io("create", &dir))?;
        atomic::replace(&path, text.as_bytes())
    }

    fn create_guest(&self, _name: &str, dir: FreshDir, text: &str) -> Result<(), StoreError> {
        let spec = dir.path().join(GuestDir::SPEC_FILE);
        document::check_length(&spec, text)?;
        write_synced(&spec, text.as_bytes())?;
        dir.publish()
    }

    fn remove(&self, key: &Key) -> Result<(), StoreError> {
        match key {
            Key::Guest(_) | Key::Host(_) => remove_at_once(&self.dir(key)?),
            Key::Policy | Key::Tokens => document::remove(&self.path(key)?),
        }
    }

    fn append(&self, host: &str, line: &str) -> Result<(), StoreError> {
        let [older, log] = self.log_files(host)?;
        match fs::metadata(&log) {
            Ok(metadata) if metadata.len() >= LOG_BYTES_MAX => {
                fs::rename(&log, older).map_err(StoreError::io("rename", &log))?;
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("look at", &log)(error));
            }
            _ => {}
        }
        let append = || {
            let mut file = OpenOptions::new().append(true).create(true).open(&log)?;
            file.write_all(format!("{line}\n").as_bytes())
        };
        append().map_err(StoreError::io("write", &log))
    }

    fn log(&self, host: &str) -> Result<String, StoreError> {
        let mut all = String::new();
        for file in self.log_files(host)? {
            match read_limited(&file, LOG_BYTES_LIMIT) {
                Ok(bytes) => all += &String::from_utf8_lossy(&bytes),
                Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    fn log_mark(&self, host: &str) -> Result<u64, StoreError> {
        let [_, log] = self.log_files(host)?;
        // Opened first: the length that an NFS client remembers may be a minute old.
        match undelegated::open(&log).and_then(|file| file.metadata()) {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(StoreError::io("look at", &log)(error)),
        }
    }
}

/// Removes a directory that is there for others until it is gone from their sight whole.
pub(crate) fn remove_at_once(dir: &Path) -> Result<(), StoreError> {
    let doomed = temporary(dir);
    match fs::rename(dir, &doomed) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(StoreError::io("remove", dir))?,
    }
    sync_dir(dir.parent().unwrap_or(Path::new(".")))?;
    // Over NFS, a file that a process of this host has open stays as a leftover.
    if let Err(error) = fs::remove_dir_all(&doomed) {
        tracing::warn!(%error, leftover = %doomed.display(), "it is gone, its files are not");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_becomes_the_older_one() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("hosts/a");
        fs::create_dir_all(&dir).unwrap();
        let files = Files::new(root.path());
        files.append("a", "one").unwrap();
        fs::write(dir.join(LOG_FILE), vec![b'\n'; LOG_BYTES_MAX as usize]).unwrap();
        files.append("a", "two").unwrap();
        assert!(dir.join(OLDER_LOG_FILE).exists());
        assert_eq!(fs::read_to_string(dir.join(LOG_FILE)).unwrap(), "two\n");
        assert!(files.log("a").unwrap().ends_with("\n\ntwo\n"));
    }
}
