//! The layout of the datastore: one directory that every host mounts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use storage_core::name::check_name;
use storage_core::timing::Timing;

use crate::atomic::{self, names, read_limited, sync_dir, temporary, write_synced};
use crate::cluster_file::{ClusterFile, VERSION};
use crate::document::{self, DOCUMENT_BYTES_LIMIT, Revised, parse_versioned};
use crate::error::StoreError;
use crate::guest_dir::GuestDir;
use crate::lease::LeaseFiles;
use crate::state::{Files, FreshDir, Key, Kind, StateStore, remove_at_once};

const CLUSTER_FILE: &str = "cluster.toml";
pub(crate) const DIRECTORIES: [&str; 4] = ["trust", "hosts", "images", "guests"];
/// The subject of the lease that makes a host the leader.
pub const LEADER: &str = "leader";

/// An open datastore. Cheap to clone; holds no descriptor.
///
/// Leases, heartbeats, disks, images and trust are always files of its directory. What else the
/// cluster is told and remembers is kept by its [`StateStore`]: files as well, unless another
/// one is given.
#[derive(Debug, Clone)]
pub struct Datastore {
    root: PathBuf,
    cluster: ClusterFile,
    state: Arc<dyn StateStore>,
}

impl Datastore {
    /// Makes a datastore of an existing directory. cluster.toml appears last, so that a
    /// crash leaves no half-made datastore that opens.
    pub fn create(root: &Path, cluster: &ClusterFile) -> Result<Self, StoreError> {
        let path = root.join(CLUSTER_FILE);
        cluster
            .timing
            .check()
            .map_err(|source| StoreError::Timing {
                path: path.clone(),
                source,
            })?;
        for name in DIRECTORIES {
            let dir = root.join(name);
            fs::create_dir_all(&dir).map_err(StoreError::io("create", &dir))?;
        }
        let text = toml::to_string_pretty(cluster).map_err(|error| StoreError::Invalid {
            path: path.clone(),
            why: error.to_string(),
        })?;
        let fresh = temporary(&path);
        write_synced(&fresh, text.as_bytes())?;
        let linked = fs::hard_link(&fresh, &path);
        let ours = linked.is_ok() || document::same_file(&fresh, &path);
        let _ = fs::remove_file(&fresh);
        match linked {
            Err(error) if !ours && error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(StoreError::Exists(path));
            }
            Err(error) if !ours => return Err(StoreError::io("create", &path)(error)),
            _ => sync_dir(root)?,
        }
        Self::open(root)
    }

    /// Opens a datastore: checks its version and refuses unsafe timings.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let path = root.join(CLUSTER_FILE);
        let bytes = match read_limited(&path, DOCUMENT_BYTES_LIMIT) {
            Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => {
                return Err(StoreError::NotADatastore(root.into()));
            }
            other => other?,
        };
        let text = document::utf8(&path, bytes)?;
        let cluster: ClusterFile = parse_versioned(&path, &text, VERSION)?;
        cluster
            .timing
            .check()
            .map_err(|source| StoreError::Timing { path, source })?;
        Ok(Self {
            root: root.into(),
            cluster,
            state: Arc::new(Files::new(root)),
        })
    }

    /// The same with its state elsewhere than in its files.
    #[must_use]
    pub fn with_state(self, state: Arc<dyn StateStore>) -> Self {
        Self { state, ..self }
    }

    /// What the cluster is told and remembers.
    pub fn state(&self) -> &Arc<dyn StateStore> {
        &self.state
    }

    /// Replaces the settings in cluster.toml; the id stays.
    pub fn save_cluster(&mut self, mut cluster: ClusterFile) -> Result<(), StoreError> {
        let path = self.root.join(CLUSTER_FILE);
        cluster.id = self.cluster.id;
        cluster
            .timing
            .check()
            .map_err(|source| StoreError::Timing {
                path: path.clone(),
                source,
            })?;
        let text = toml::to_string_pretty(&cluster).map_err(|error| StoreError::Invalid {
            path: path.clone(),
            why: error.to_string(),
        })?;
        atomic::replace(&path, text.as_bytes())?;
        self.cluster = cluster;
        Ok(())
    }

    /// What the operator wants of the cluster; [`StoreError::Missing`] until something is.
    pub fn policy<T: DeserializeOwned>(&self) -> Result<Revised<T>, StoreError> {
        self.state.read(&Key::Policy)
    }

    /// Makes `policy` the revision after `revision` (0 for the first), or says that somebody
    /// else was faster.
    pub fn update_policy<T: Serialize>(
        &self,
        revision: u64,
        policy: &T,
    ) -> Result<u64, StoreError> {
        self.state.update(&Key::Policy, revision, policy)
    }

    /// The tokens of operators; [`StoreError::Missing`] until one was made.
    pub fn tokens<T: DeserializeOwned>(&self) -> Result<Revised<T>, StoreError> {
        self.state.read(&Key::Tokens)
    }

    /// Makes `tokens` the revision after `revision` (0 for the first), or says that somebody
    /// else was faster.
    pub fn update_tokens<T: Serialize>(
        &self,
        revision: u64,
        tokens: &T,
    ) -> Result<u64, StoreError> {
        self.state.update(&Key::Tokens, revision, tokens)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its settings.
    pub fn cluster(&self) -> &ClusterFile {
        &self.cluster
    }

    /// Its timings.
    pub fn timing(&self) -> &Timing {
        &self.cluster.timing
    }

    /// Where the cluster's certificate authority lives.
    pub fn trust_dir(&self) -> PathBuf {
        self.root.join("trust")
    }

    /// The leases of the leadership.
    pub fn leader_lease(&self) -> LeaseFiles {
        LeaseFiles::new(&self.root, LEADER, LEADER, self.cluster.id)
    }

    // --- hosts ---

    /// The hosts that are members, in order of their names.
    pub fn hosts(&self) -> Result<Vec<String>, StoreError> {
        self.state.list(Kind::Hosts)
    }

    /// A host's directory, made if need be.
    pub fn host_dir(&self, host: &str) -> Result<PathBuf, StoreError> {
        let dir = self.path_of("hosts", host)?;
        fs::create_dir_all(&dir).map_err(StoreError::io("create", &dir))?;
        Ok(dir)
    }

    /// A host's heartbeat file.
    pub fn heartbeat_path(&self, host: &str) -> Result<PathBuf, StoreError> {
        Ok(self.path_of("hosts", host)?.join("heartbeat"))
    }

    /// What a host says about itself.
    pub fn read_host<T: DeserializeOwned>(&self, host: &str) -> Result<T, StoreError> {
        let said = self.state.get(&Key::Host(host.into()))?;
        parse_versioned(&said.place, &said.text, VERSION).map(|HostOnDisk { host, .. }| host)
    }

    /// Says something about a host. Only the host itself does, so that no revision is needed.
    pub fn write_host<T: Serialize>(&self, name: &str, host: &T) -> Result<(), StoreError> {
        let key = Key::Host(name.into());
        let on_disk = HostOnDisk {
            version: VERSION,
            host,
        };
        let text = toml::to_string_pretty(&on_disk).map_err(|error| StoreError::Invalid {
            path: key.place(),
            why: error.to_string(),
        })?;
        self.state.put(&key, 0, &text)
    }

    /// Removes all that there is of a host: what it said, its history, its heartbeat, which it may
    /// be writing yet.
    pub fn remove_host(&self, name: &str) -> Result<(), StoreError> {
        self.state.remove(&Key::Host(name.into()))?;
        remove_at_once(&self.path_of("hosts", name)?)
    }

    // --- images ---

    /// The catalogue: names of the read-only images.
    pub fn images(&self) -> Result<Vec<String>, StoreError> {
        self.named("images")
    }

    /// An image's directory.
    pub fn image_dir(&self, image: &str) -> Result<PathBuf, StoreError> {
        let dir = self.path_of("images", image)?;
        if dir.is_dir() {
            Ok(dir)
        } else {
            Err(StoreError::Missing(dir))
        }
    }

    // --- guests ---

    /// The guests, in order of their names.
    pub fn guests(&self) -> Result<Vec<String>, StoreError> {
        self.state.list(Kind::Guests)
    }

    /// A guest's directory.
    pub fn guest(&self, name: &str) -> Result<GuestDir, StoreError> {
        let dir = self.path_of("guests", name)?;
        if !dir.is_dir() {
            return Err(StoreError::Missing(dir));
        }
        let state = self.state.clone();
        Ok(GuestDir::new(dir, name, self.cluster.id, state))
    }

    /// Makes a guest: its directory appears whole, with its spec and whatever `fill` puts
    /// into it (its disks), or not at all.
    pub fn create_guest<T: Serialize>(
        &self,
        name: &str,
        spec: &T,
        fill: impl FnOnce(&Path) -> Result<(), StoreError>,
    ) -> Result<GuestDir, StoreError> {
        let text = document::render(&Key::Guest(name.into()).place(), 1, spec)?;
        let fresh = FreshDir::beside(&self.path_of("guests", name)?)?;
        fill(fresh.path())?;
        self.state.create_guest(name, fresh, &text)?;
        self.guest(name)
    }

    /// Removes a guest with its disks. The caller holds its lease.
    ///
    /// It is gone once its directory has lost its name. What cannot be removed after that (over
    /// NFS, a file that a process of this host has open) stays as a leftover.
    pub fn remove_guest(&self, name: &str) -> Result<(), StoreError> {
        let dir = self.guest(name)?.path().to_owned();
        self.state.remove(&Key::Guest(name.into()))?;
        remove_at_once(&dir)
    }

    /// Everything that is wrong with the datastore, without changing it.
    pub fn validate(&self) -> Result<Vec<StoreError>, StoreError> {
        let mut wrong = Vec::new();
        for name in DIRECTORIES {
            let dir = self.root.join(name);
            if !dir.is_dir() {
                wrong.push(StoreError::Missing(dir));
            }
        }
        for host in self.named("hosts")? {
            let path = self.heartbeat_path(&host)?;
            if path.exists() {
                wrong.extend(crate::heartbeat::read(&path).err());
            }
            let facts = self.read_host::<toml::Table>(&host);
            wrong.extend(facts.err().filter(|error| !is_absent(error)));
        }
        let policy = self.policy::<toml::Table>();
        let tokens = self.tokens::<toml::Table>();
        let errors = [policy.err(), tokens.err()].into_iter().flatten();
        wrong.extend(errors.filter(|error| !is_absent(error)));
        for guest in self.named("guests")? {
            let guest = self.guest(&guest)?;
            wrong.extend(guest.spec::<toml::Table>().err());
            wrong.extend(guest.lease().last().err());
        }
        wrong.extend(self.leader_lease().last().err());
        Ok(wrong)
    }

    fn path_of(&self, kind: &str, name: &str) -> Result<PathBuf, StoreError> {
        check_name(name).map_err(|source| StoreError::Name {
            name: name.into(),
            source,
        })?;
        Ok(self.root.join(kind).join(name))
    }

    fn named(&self, kind: &str) -> Result<Vec<String>, StoreError> {
        let dir = self.root.join(kind);
        let mut names = names(&dir)?;
        names.retain(|name| check_name(name).is_ok() && dir.join(name).is_dir());
        Ok(names)
    }
}

fn is_absent(error: &StoreError) -> bool {
    matches!(error, StoreError::Missing(_)) || error.io_kind() == Some(io::ErrorKind::NotFound)
}

#[derive(Serialize, Deserialize)]
struct HostOnDisk<T> {
    version: u32,
    host: T,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Datastore) {
        let dir = tempfile::tempdir().unwrap();
        let cluster = ClusterFile::new("test", Timing::default());
        let store = Datastore::create(dir.path(), &cluster).unwrap();
        (dir, store)
    }

    fn spec() -> toml::Table {
        toml::Table::from_iter([("cpus".into(), toml::Value::Integer(2))])
    }

    #[test]
    fn created_once_and_opened_by_all() {
        let (dir, store) = store();
        assert_eq!(
            Datastore::open(dir.path()).unwrap().cluster(),
            store.cluster()
        );
        let again = Datastore::create(dir.path(), &ClusterFile::new("b", Timing::default()));
        assert!(matches!(again, Err(StoreError::Exists(_))));
        let empty = tempfile::tempdir().unwrap();
        let error = Datastore::open(empty.path()).unwrap_err().to_string();
        assert!(error.contains("godwit-store init"), "{error}");
        assert_eq!(store.validate().unwrap().len(), 0);
    }

    #[test]
    fn unsafe_timings_and_newer_versions_are_refused() {
        let (dir, _store) = store();
        let path = dir.path().join(CLUSTER_FILE);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("watch_ms = 3300", "watch_ms = 2000")).unwrap();
        let error = Datastore::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("watch_ms = 2000 is unsafe"), "{error}");
        fs::write(&path, text.replace("version = 1", "version = 7")).unwrap();
        let error = Datastore::open(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("version 7, this release knows versions up to 1"),
            "{error}"
        );
    }

    #[test]
    fn the_policy_begins_with_its_first_change_and_loses_none() {
        let (_dir, store) = store();
        let missing = store.policy::<toml::Table>();
        assert!(matches!(missing, Err(StoreError::Missing(_))));
        assert_eq!(store.update_policy(0, &spec()).unwrap(), 1);
        let late = store.update_policy(0, &spec());
        assert!(matches!(late, Err(StoreError::Changed { found: 1, .. })));
        assert_eq!(store.update_policy(1, &spec()).unwrap(), 2);
        assert_eq!(store.policy::<toml::Table>().unwrap().spec, spec());
    }

    #[test]
    fn a_guest_appears_whole_or_not_at_all() {
        let (_dir, store) = store();
        let guest = store.create_guest("web1", &spec(), |_| Ok(())).unwrap();
        assert_eq!(guest.spec::<toml::Table>().unwrap().spec, spec());
        let again = store.create_guest("web1", &spec(), |_| Ok(()));
        assert!(matches!(again, Err(StoreError::Exists(_))));
        let failed = store.create_guest("web2", &spec(), |dir| {
            Err(StoreError::Missing(dir.join("disk")))
        });
        assert!(matches!(failed, Err(StoreError::Missing(_))));
        assert_eq!(store.guests().unwrap(), ["web1"]);
        assert!(store.leftovers().unwrap().is_empty());
        assert!(matches!(store.guest("../x"), Err(StoreError::Name { .. })));
        store.remove_guest("web1").unwrap();
        assert!(store.guests().unwrap().is_empty());
    }

    #[test]
    fn validation_names_every_damaged_file() {
        let (_dir, store) = store();
        let guest = store.create_guest("web1", &spec(), |_| Ok(())).unwrap();
        fs::write(guest.path().join("lease.3"), "rubbish").unwrap();
        fs::write(guest.path().join("guest.toml"), "version = 1").unwrap();
        fs::write(store.host_dir("a").unwrap().join("heartbeat"), "").unwrap();
        fs::write(
            store.host_dir("a").unwrap().join("host.toml"),
            "version = 9",
        )
        .unwrap();
        fs::write(store.root().join("policy.toml"), "version = 1").unwrap();
        let wrong: Vec<_> = store
            .validate()
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(wrong.len(), 5, "{wrong:?}");
    }
}
