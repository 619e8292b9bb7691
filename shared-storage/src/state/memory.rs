//! A state store that nothing outlives, for tests: whoever runs on it runs on any.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Document, FreshDir, Key, Kind, StateStore};
use crate::document;
use crate::error::StoreError;

/// Documents and logs in memory.
#[derive(Debug, Default)]
pub struct Memory {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    documents: BTreeMap<Key, (u64, String)>,
    logs: BTreeMap<String, String>,
}

impl Memory {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateStore for Memory {
    fn list(&self, kind: Kind) -> Result<Vec<String>, StoreError> {
        let kept = self.kept();
        let names = kept.documents.keys().filter_map(|key| match (kind, key) {
            (Kind::Hosts, Key::Host(name)) | (Kind::Guests, Key::Guest(name)) => Some(name),
            _ => None,
        });
        Ok(names.cloned().collect())
    }

    fn get(&self, key: &Key) -> Result<Document, StoreError> {
        key.check()?;
        let kept = self.kept();
        let found = kept.documents.get(key);
        let (revision, text) = found.ok_or_else(|| StoreError::Missing(key.place()))?;
        Ok(Document {
            revision: *revision,
            text: text.clone(),
            place: key.place(),
        })
    }

    fn put(&self, key: &Key, expected: u64, text: &str) -> Result<(), StoreError> {
        key.check()?;
        document::check_length(&key.place(), text)?;
        let mut kept = self.kept();
        let found = kept.documents.get(key).map_or(0, |(revision, _)| *revision);
        if found != expected {
            return Err(StoreError::Changed {
                path: key.place(),
                expected,
                found,
            });
        }
        let revision = if key.has_revisions() { expected + 1 } else { 0 };
        kept.documents
            .insert(key.clone(), (revision, text.to_owned()));
        Ok(())
    }

    fn create_guest(&self, name: &str, dir: FreshDir, text: &str) -> Result<(), StoreError> {
        let key = Key::Guest(name.to_owned());
        key.check()?;
        document::check_length(&key.place(), text)?;
        let mut kept = self.kept();
        if kept.documents.contains_key(&key) {
            return Err(StoreError::Exists(PathBuf::from(name)));
        }
        dir.publish()?;
        kept.documents.insert(key, (1, text.to_owned()));
        Ok(())
    }

    fn remove(&self, key: &Key) -> Result<(), StoreError> {
        key.check()?;
        let mut kept = self.kept();
        kept.documents.remove(key);
        if let Key::Host(name) = key {
            kept.logs.remove(name);
        }
        Ok(())
    }

    fn append(&self, host: &str, line: &str) -> Result<(), StoreError> {
        let mut kept = self.kept();
        let log = kept.logs.entry(host.to_owned()).or_default();
        log.push_str(line);
        log.push('\n');
        Ok(())
    }

    fn log(&self, host: &str) -> Result<String, StoreError> {
        Ok(self.kept().logs.get(host).cloned().unwrap_or_default())
    }

    fn log_mark(&self, host: &str) -> Result<u64, StoreError> {
        Ok(self.kept().logs.get(host).map_or(0, String::len) as u64)
    }
}
