//! What the cluster is told and remembers, behind one small trait.
//!
//! Documents with revisions (guests' specs, the policy, operators' tokens), what hosts say of
//! themselves, and a log per host (the event history). [`Files`] keeps them in the datastore's
//! own files and is what every cluster uses unless told otherwise; docs/decisions/0007 says
//! what an external store has to do. Who may run a guest or lead is never asked here: that is
//! the leases' alone, as are disks, images and heartbeats the datastore's.

mod files;
mod fresh_dir;
mod memory;

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;
use storage_core::name::check_name;

pub use files::Files;
pub(crate) use files::remove_at_once;
pub use fresh_dir::FreshDir;
pub use memory::Memory;

use crate::document::{self, Revised};
use crate::error::StoreError;

/// What a document is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// What the operator wants of the cluster.
    Policy,
    /// The tokens of operators.
    Tokens,
    /// What a host says of itself. Only that host writes it, so it has no revisions: it is
    /// read as revision 0, and the last [`StateStore::put`] holds.
    Host(String),
    /// A guest's spec.
    Guest(String),
}

/// Of what there are many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Hosts that are members.
    Hosts,
    /// Guests.
    Guests,
}

/// A document as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Grows by one with every change, from 1.
    pub revision: u64,
    /// TOML, as docs/formats.md describes it.
    pub text: String,
    /// Where it was found, for messages.
    pub place: PathBuf,
}

/// Where documents and logs are kept. All methods may block for as long as the store does.
///
/// Readers find changes by asking again: a document that did not change has the revision it
/// had, a log the mark it had.
pub trait StateStore: fmt::Debug + Send + Sync {
    /// The names there are, in order.
    fn list(&self, kind: Kind) -> Result<Vec<String>, StoreError>;

    /// The newest revision; [`StoreError::Missing`] if there is none.
    fn get(&self, key: &Key) -> Result<Document, StoreError>;

    /// Makes `text` the revision after `expected` (0: there is none yet), for all to see and
    /// lasting, or says [`StoreError::Changed`]. Of many writers one wins each revision.
    fn put(&self, key: &Key, expected: u64, text: &str) -> Result<(), StoreError>;

    /// Publishes a guest's directory together with the first revision of its spec, or says
    /// [`StoreError::Exists`]. A crash leaves both or, at worst, a directory without a spec.
    fn create_guest(&self, name: &str, dir: FreshDir, text: &str) -> Result<(), StoreError>;

    /// Removes a document and, of a host, its log. What is not there is removed already.
    fn remove(&self, key: &Key) -> Result<(), StoreError>;

    /// Adds a line to a host's log. The oldest lines may be dropped for it; there is one
    /// writer, the host itself.
    fn append(&self, host: &str, line: &str) -> Result<(), StoreError>;

    /// A host's log, the oldest line first; empty if it has none.
    fn log(&self, host: &str) -> Result<String, StoreError>;

    /// Changes whenever the log does, and costs less to ask for.
    fn log_mark(&self, host: &str) -> Result<u64, StoreError>;
}

impl dyn StateStore + '_ {
    /// The newest revision of a document that has revisions.
    pub fn read<T: DeserializeOwned>(&self, key: &Key) -> Result<Revised<T>, StoreError> {
        let document = self.get(key)?;
        document::parse(&document.place, &document.text)
    }

    /// Makes `spec` the revision after `expected` and gives its number.
    pub fn update<T: Serialize>(
        &self,
        key: &Key,
        expected: u64,
        spec: &T,
    ) -> Result<u64, StoreError> {
        let revision = expected + 1;
        let text = document::render(&key.place(), revision, spec)?;
        self.put(key, expected, &text)?;
        Ok(revision)
    }
}

impl Key {
    /// A name that could not be a file's is no key.
    pub fn check(&self) -> Result<(), StoreError> {
        match self {
            Self::Policy | Self::Tokens => Ok(()),
            Self::Host(name) | Self::Guest(name) => {
                check_name(name).map_err(|source| StoreError::Name {
                    name: name.clone(),
                    source,
                })
            }
        }
    }

    /// Its path below the datastore, where that keeps it; its name in messages anywhere else.
    pub fn place(&self) -> PathBuf {
        match self {
            Self::Policy => "policy.toml".into(),
            Self::Tokens => "trust/tokens.toml".into(),
            Self::Host(name) => PathBuf::from("hosts").join(name).join("host.toml"),
            Self::Guest(name) => PathBuf::from("guests").join(name).join("guest.toml"),
        }
    }

    fn has_revisions(&self) -> bool {
        !matches!(self, Self::Host(_))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::atomic::names;

    type Spec = std::collections::BTreeMap<String, u64>;

    fn spec(memory: u64) -> Spec {
        Spec::from([("memory_mib".into(), memory)])
    }

    /// Every store, each on a directory that has what a datastore has.
    fn stores(check: impl Fn(&dyn StateStore, &tempfile::TempDir)) {
        let root = || {
            let root = tempfile::tempdir().unwrap();
            for dir in ["trust", "hosts/a", "guests"] {
                std::fs::create_dir_all(root.path().join(dir)).unwrap();
            }
            root
        };
        let dir = root();
        check(&Files::new(dir.path()), &dir);
        check(&Memory::default(), &root());
    }

    fn guest(root: &tempfile::TempDir, name: &str) -> FreshDir {
        FreshDir::beside(&root.path().join("guests").join(name)).unwrap()
    }

    #[test]
    fn revisions_follow_each_other_and_no_update_is_lost() {
        stores(|store, _| {
            let policy = &Key::Policy;
            let missing = store.read::<Spec>(policy);
            assert!(matches!(missing, Err(StoreError::Missing(_))));
            assert_eq!(store.update(policy, 0, &spec(1)).unwrap(), 1);
            assert_eq!(store.update(policy, 1, &spec(2)).unwrap(), 2);
            for stale in [0, 1, 3] {
                let error = store.update(policy, stale, &spec(9)).unwrap_err();
                let changed = matches!(error, StoreError::Changed { expected, found: 2, .. }
                    if expected == stale);
                assert!(changed, "{error}");
            }
            let read = store.read::<Spec>(policy).unwrap();
            assert_eq!((read.revision, read.spec), (2, spec(2)));
            store.remove(policy).unwrap();
            store.remove(policy).unwrap();
            assert_eq!(store.update(policy, 0, &spec(3)).unwrap(), 1);
        });
    }

    #[test]
    fn of_many_writers_one_wins_each_revision() {
        stores(|store, _| {
            store.update(&Key::Tokens, 0, &spec(0)).unwrap();
            let wins: usize = std::thread::scope(|scope| {
                let writers: Vec<_> = (1..8)
                    .map(|n| scope.spawn(move || store.update(&Key::Tokens, 1, &spec(n)).is_ok()))
                    .collect();
                let won = writers.into_iter().map(|writer| writer.join().unwrap());
                won.map(usize::from).sum()
            });
            assert_eq!(wins, 1);
            assert_eq!(store.read::<Spec>(&Key::Tokens).unwrap().revision, 2);
        });
    }

    #[test]
    fn a_guest_is_made_once_and_goes_whole() {
        stores(|store, root| {
            let key = Key::Guest("web1".into());
            let text = document::render(&key.place(), 1, &spec(64)).unwrap();
            let dir = root.path().join("guests/web1");
            store
                .create_guest("web1", guest(root, "web1"), &text)
                .unwrap();
            assert!(dir.is_dir());
            let again = store.create_guest("web1", guest(root, "web1"), &text);
            assert!(matches!(again, Err(StoreError::Exists(_))));
            assert_eq!(names(&root.path().join("guests")).unwrap(), ["web1"]);
            assert_eq!(store.list(Kind::Guests).unwrap(), ["web1"]);
            assert_eq!(store.update(&key, 1, &spec(128)).unwrap(), 2);
            store.remove(&key).unwrap();
            assert!(store.list(Kind::Guests).unwrap().is_empty());
            let gone = store.read::<Spec>(&key);
            assert!(matches!(gone, Err(StoreError::Missing(_))));
        });
    }

    #[test]
    fn a_host_speaks_for_itself_and_its_log_grows() {
        stores(|store, _| {
            let key = Key::Host("a".into());
            store.put(&key, 0, "version = 1\n").unwrap();
            store.put(&key, 0, "version = 1\nmore = 2\n").unwrap();
            let read = store.get(&key).unwrap();
            assert_eq!(
                (read.revision, &read.text[..]),
                (0, "version = 1\nmore = 2\n")
            );
            assert_eq!(store.list(Kind::Hosts).unwrap(), ["a"]);
            assert_eq!(store.log("a").unwrap(), "");
            let before = store.log_mark("a").unwrap();
            store.append("a", "one").unwrap();
            store.append("a", "two").unwrap();
            assert_eq!(store.log("a").unwrap(), "one\ntwo\n");
            assert_ne!(store.log_mark("a").unwrap(), before);
            store.remove(&key).unwrap();
            assert!(store.list(Kind::Hosts).unwrap().is_empty());
            assert_eq!(store.log("a").unwrap(), "");
        });
    }

    #[test]
    fn what_cannot_be_a_name_is_no_key_and_what_is_too_long_no_document() {
        stores(|store, root| {
            for name in ["", "../x", "a/b"] {
                let key = Key::Guest(name.into());
                assert!(matches!(store.get(&key), Err(StoreError::Name { .. })));
                let put = store.put(&key, 0, "version = 1\n");
                assert!(matches!(put, Err(StoreError::Name { .. })));
            }
            let long = "#".repeat(document::DOCUMENT_BYTES_LIMIT as usize + 1);
            let refused = store.put(&Key::Policy, 0, &long);
            assert!(matches!(refused, Err(StoreError::TooLarge { .. })));
            let refused = store.create_guest("web1", guest(root, "web1"), &long);
            assert!(matches!(refused, Err(StoreError::TooLarge { .. })));
            assert!(names(&root.path().join("guests")).unwrap().is_empty());
        });
    }

    #[test]
    fn it_is_shared_between_threads() {
        let shared: Arc<dyn StateStore> = Arc::new(Memory::default());
        let also = shared.clone();
        std::thread::spawn(move || also.append("a", "one").unwrap())
            .join()
            .unwrap();
        assert_eq!(shared.log("a").unwrap(), "one\n");
    }
}
