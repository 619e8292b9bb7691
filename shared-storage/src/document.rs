//! Text files with a version and a revision, changed so that no update is lost.
//!
//! Revision `n+1` exists from the instant at which a link to `<name>.<n+1>` succeeds, which
//! only one writer can achieve. The plain `<name>` is renamed into place after that, for
//! people and for copies; a writer that dies in between, or is so late that it renames an
//! old revision into place, does no harm, because readers take the highest revision of all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::atomic::{names, read_limited, sync_dir, temporary, write_synced};
use crate::error::StoreError;
use crate::state::Document;

/// No document is longer than this.
pub const DOCUMENT_BYTES_LIMIT: u64 = 1 << 20;
const VERSION: u32 = 1;
/// How often reading starts over because files were replaced under it.
const READ_ATTEMPTS: u32 = 8;

/// A value with the revision under which it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revised<T> {
    /// Grows by one with every change.
    pub revision: u64,
    /// The value.
    pub spec: T,
}

#[derive(Serialize, Deserialize)]
struct OnDisk<T> {
    version: u32,
    revision: u64,
    spec: T,
}

/// The part that every version has.
#[derive(Deserialize)]
struct Head {
    version: u32,
    #[serde(default)]
    revision: u64,
}

/// Reads the newest revision of the document at `path`.
pub(crate) fn read_text(path: &Path) -> Result<Document, StoreError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match newest(path) {
            // Replaced since it was listed; over NFS that shows as a stale handle.
            Err(error)
                if attempt < READ_ATTEMPTS
                    && matches!(
                        error.io_kind(),
                        Some(io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle)
                    ) => {}
            Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => {
                return Err(StoreError::Missing(path.into()));
            }
            other => return other,
        }
    }
}

/// Makes `text` the revision after `expected`, or says that somebody else was faster.
/// Revision 0 is that of a document that does not exist yet.
pub(crate) fn update_text(path: &Path, expected: u64, text: &str) -> Result<(), StoreError> {
    let changed = |found| StoreError::Changed {
        path: path.into(),
        expected,
        found,
    };
    let found = match read_text(path) {
        Err(StoreError::Missing(_)) => 0,
        other => other?.revision,
    };
    if found != expected {
        return Err(changed(found));
    }
    let revision = expected + 1;
    let fresh = temporary(path);
    write_synced(&fresh, text.as_bytes())?;
    let numbered = numbered(path, revision);
    if let Err(error) = fs::hard_link(&fresh, &numbered)
        && !same_file(&fresh, &numbered)
    {
        let _ = fs::remove_file(&fresh);
        if error.kind() == io::ErrorKind::AlreadyExists {
            return Err(changed(read_text(path)?.revision));
        }
        return Err(StoreError::io("write", numbered)(error));
    }
    fs::rename(&fresh, path).map_err(StoreError::io("replace", path))?;
    sync_dir(parent(path))?;
    for (old, file) in numbered_files(path)? {
        if old < revision {
            // Somebody else may have removed it; what stays is ignored by readers.
            let _ = fs::remove_file(file);
        }
    }
    Ok(())
}

/// Removes the document, its newest revision last.
pub(crate) fn remove(path: &Path) -> Result<(), StoreError> {
    let mut numbered = numbered_files(path)?;
    numbered.sort();
    let files = numbered.into_iter().map(|(_, file)| file);
    for file in std::iter::once(path.to_owned()).chain(files) {
        match fs::remove_file(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(StoreError::io("remove", &file))?,
        }
    }
    sync_dir(parent(path))
}

/// The newest revision there is at this instant.
fn newest(path: &Path) -> Result<Document, StoreError> {
    let plain = read_file(path);
    let highest = numbered_files(path)?
        .into_iter()
        .max_by_key(|(revision, _)| *revision);
    match (highest, plain) {
        (None, plain) => plain,
        // An editor that replaces the plain file leaves it with the revision it had, or a later.
        (Some((revision, _)), Ok(plain)) if plain.revision >= revision => Ok(plain),
        (Some((_, file)), _) => read_file(&file),
    }
}

fn read_file(path: &Path) -> Result<Document, StoreError> {
    let text = utf8(path, read_limited(path, DOCUMENT_BYTES_LIMIT)?)?;
    let head: Head = parse_versioned(path, &text, VERSION)?;
    Ok(Document {
        revision: head.revision,
        text,
        place: path.into(),
    })
}

fn numbered_files(path: &Path) -> Result<Vec<(u64, PathBuf)>, StoreError> {
    let stem = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let revision = |name: &str| name.strip_prefix(&stem)?.strip_prefix('.')?.parse().ok();
    let dir = parent(path);
    let names = match names(dir) {
        Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => {
            return Err(StoreError::Missing(path.into()));
        }
        other => other?,
    };
    Ok(names
        .iter()
        .filter_map(|name| Some((revision(name)?, dir.join(name))))
        .collect())
}

fn numbered(path: &Path, revision: u64) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.{revision}"))
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

pub(crate) fn same_file(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    matches!((id(one), id(other)), (Ok(one), Ok(other)) if one == other)
}

/// The text of a revision; `path` is for messages.
pub(crate) fn render<T: Serialize>(
    path: &Path,
    revision: u64,
    spec: &T,
) -> Result<String, StoreError> {
    let on_disk = OnDisk {
        version: VERSION,
        revision,
        spec,
    };
    toml::to_string_pretty(&on_disk).map_err(|error| StoreError::Invalid {
        path: path.into(),
        why: error.to_string(),
    })
}

/// Refuses a text that no reader would take.
pub(crate) fn check_length(path: &Path, text: &str) -> Result<(), StoreError> {
    let (bytes, limit) = (text.len() as u64, DOCUMENT_BYTES_LIMIT);
    if bytes > limit {
        return Err(StoreError::TooLarge {
            path: path.into(),
            bytes,
            limit,
        });
    }
    Ok(())
}

/// What a text says; `path` is for messages.
pub(crate) fn parse<T: DeserializeOwned>(
    path: &Path,
    text: &str,
) -> Result<Revised<T>, StoreError> {
    let on_disk: OnDisk<T> = parse_versioned(path, text, VERSION)?;
    Ok(Revised {
        revision: on_disk.revision,
        spec: on_disk.spec,
    })
}

/// Bytes that should be text.
pub(crate) fn utf8(path: &Path, bytes: Vec<u8>) -> Result<String, StoreError> {
    String::from_utf8(bytes).map_err(|error| StoreError::Invalid {
        path: path.into(),
        why: error.utf8_error().to_string(),
    })
}

/// Parses a text whose `version` is looked at before anything else is.
pub(crate) fn parse_versioned<T: DeserializeOwned>(
    path: &Path,
    text: &str,
    known: u32,
) -> Result<T, StoreError> {
    let invalid = |why: String| StoreError::Invalid {
        path: path.into(),
        why,
    };
    let head: Head = toml::from_str(text).map_err(|error| invalid(error.to_string()))?;
    if head.version > known {
        return Err(StoreError::Newer {
            path: path.into(),
            found: head.version,
            known,
        });
    }
    if head.version == 0 {
        return Err(invalid("version 0 does not exist".into()));
    }
    toml::from_str(text).map_err(|error| invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Spec = std::collections::BTreeMap<String, u64>;

    fn spec(memory: u64) -> Spec {
        Spec::from([("memory_mib".into(), memory)])
    }

    fn fresh() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guest.toml");
        fs::write(&path, render(&path, 1, &spec(1)).unwrap()).unwrap();
        (dir, path)
    }

    fn read<T: DeserializeOwned>(path: &Path) -> Result<Revised<T>, StoreError> {
        let read = read_text(path)?;
        parse(&read.place, &read.text)
    }

    fn update(path: &Path, expected: u64, spec: &Spec) -> Result<u64, StoreError> {
        update_text(path, expected, &render(path, expected + 1, spec)?)?;
        Ok(expected + 1)
    }

    #[test]
    fn revisions_follow_each_other() {
        let (dir, path) = fresh();
        assert_eq!(update(&path, 1, &spec(2)).unwrap(), 2);
        assert_eq!(update(&path, 2, &spec(3)).unwrap(), 3);
        assert_eq!(
            read::<Spec>(&path).unwrap(),
            Revised {
                revision: 3,
                spec: spec(3)
            }
        );
        assert_eq!(names(dir.path()).unwrap(), ["guest.toml", "guest.toml.3"]);
    }

    #[test]
    fn a_crash_between_link_and_rename_loses_nothing() {
        let (_dir, path) = fresh();
        let text = render(&path, 2, &spec(2)).unwrap();
        fs::write(numbered(&path, 2), text).unwrap();
        assert_eq!(
            read::<Spec>(&path).unwrap(),
            Revised {
                revision: 2,
                spec: spec(2)
            }
        );
        assert_eq!(update(&path, 2, &spec(3)).unwrap(), 3);
    }

    #[test]
    fn a_late_rename_of_an_old_revision_does_no_harm() {
        let (_dir, path) = fresh();
        update(&path, 1, &spec(2)).unwrap();
        update(&path, 2, &spec(3)).unwrap();
        let late = render(&path, 2, &spec(2)).unwrap();
        crate::atomic::replace(&path, late.as_bytes()).unwrap();
        assert_eq!(
            read::<Spec>(&path).unwrap(),
            Revised {
                revision: 3,
                spec: spec(3)
            }
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let (_dir, path) = fresh();
        let said = |text: &str| {
            fs::write(&path, text).unwrap();
            read::<Spec>(&path).unwrap_err().to_string()
        };
        assert!(said("version = 2\nfuture = 1").contains("version 2, this release knows"));
        assert!(said("version = 1\nrevision = 1").contains("spec"));
        assert!(said("version = 1\nrevi").contains("guest.toml is not valid"));
        assert!(said("").contains("version"));
        fs::remove_file(&path).unwrap();
        assert!(matches!(read::<Spec>(&path), Err(StoreError::Missing(_))));
    }
}
