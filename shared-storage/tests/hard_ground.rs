//! A datastore that is full, read-only or somebody else's: every refusal names the thing and the
//! remedy, and what was there before is there afterwards.
//!
//! Needs root for its mounts; says so and is skipped without.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use shared_storage::lease::{HeldLease, Notice};
use shared_storage::{ClusterFile, Datastore, Keeper, LocalHost, Role, StoreError};
use storage_core::timing::Timing;
use toml::Table;

const PATIENCE: Duration = Duration::from_secs(20);
/// User and group of nobody.
const NOBODY: &str = "65534";

/// A small file system of its own, with a datastore and one guest on it.
struct Ground {
    dir: tempfile::TempDir,
}

impl Ground {
    /// Nothing where this process may not mount.
    fn prepare() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let ground = Self { dir };
        fs::create_dir(ground.root()).unwrap();
        let mounted = ground.mount(&["-t", "tmpfs", "-o", "size=512k", "tmpfs"]);
        if !mounted {
            println!("SKIPPED: this process may not mount a file system");
            return None;
        }
        Some(ground)
    }

    fn with_a_guest() -> Option<(Self, Datastore)> {
        let ground = Self::prepare()?;
        let cluster = ClusterFile::new("test", Timing::default());
        let store = Datastore::create(&ground.root(), &cluster).unwrap();
        let spec = Table::from_iter([("memory_mib".to_owned(), 64.into())]);
        store.create_guest("web1", &spec, |_| Ok(())).unwrap();
        Some((ground, store))
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn mount(&self, arguments: &[&str]) -> bool {
        let mut mount = Command::new("mount");
        let status = mount.args(arguments).arg(self.root()).output();
        status.is_ok_and(|output| output.status.success())
    }

    /// Until not one byte more fits.
    fn fill(&self) -> PathBuf {
        let path = self.root().join("ballast");
        let mut bytes = vec![0u8; 1 << 20];
        while !bytes.is_empty() && fs::write(&path, &bytes).is_err() {
            bytes.truncate(bytes.len() - 4096);
        }
        path
    }

    fn store(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_godwit-store"));
        command.arg("-d").arg(self.root()).args(arguments);
        command.output().unwrap()
    }

    /// The remedy for the one thing that `check` finds wrong.
    fn only_wrong(&self) -> String {
        let check = self.store(&["check"]);
        assert_eq!(check.status.code(), Some(3), "{check:?}");
        let said = String::from_utf8(check.stdout).unwrap();
        let mut wrong = said.lines().filter(|line| line.starts_with("WRONG"));
        let (first, None) = (wrong.next().unwrap(), wrong.next()) else {
            panic!("more than one thing is wrong: {said}");
        };
        first.rsplit("; ").next().unwrap().to_owned()
    }

    /// Every file but the ballast, with what it holds.
    fn content(&self) -> Vec<(PathBuf, Vec<u8>)> {
        fn walk(dir: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, found);
                } else if !path.ends_with("ballast") {
                    found.push((path.clone(), fs::read(path).unwrap()));
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.root(), &mut found);
        found.sort();
        found
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.root()).output();
    }
}

fn refusal(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.trim().lines().count(), 1, "one clear line: {said}");
    said
}

fn claim(store: &Datastore, keeper: &Keeper) -> Result<HeldLease, StoreError> {
    let files = store.guest("web1")?.lease();
    let seen = files.look()?;
    HeldLease::claim(keeper, files, &seen, None, None, PATIENCE)
}

#[test]
fn a_full_datastore_refuses_changes_and_loses_nothing() {
    let Some((ground, store)) = Ground::with_a_guest() else {
        return;
    };
    let host = LocalHost::new("a", &ground.run_dir()).unwrap();
    let keeper = Keeper::start(&store, &host, Role::Agent).unwrap();
    keeper.wait_live(PATIENCE).unwrap();
    let ballast = ground.fill();
    drop(keeper);
    let before = ground.content();

    let guest = store.guest("web1").unwrap();
    let spec = guest.spec::<Table>().unwrap();
    let refused = guest.update_spec(spec.revision, &spec.spec).unwrap_err();
    assert!(refused.to_string().contains("free space"), "{refused}");
    let refused = store
        .create_guest("web2", &spec.spec, |_| Ok(()))
        .unwrap_err();
    assert!(refused.to_string().contains("free space"), "{refused}");
    assert_eq!(ground.content(), before, "a refused change left its traces");
    assert_eq!(ground.only_wrong(), "free space on the datastore");

    // The heartbeat is rewritten in place, so that a full datastore costs no host its guests.
    let keeper = Keeper::start(&store, &host, Role::Agent).unwrap();
    keeper.wait_live(PATIENCE).unwrap();
    let refused = claim(&store, &keeper).unwrap_err();
    assert!(refused.to_string().contains("web1"), "{refused}");
    fs::remove_file(ballast).unwrap();
    claim(&store, &keeper).unwrap();
}

#[test]
fn a_lease_outlives_a_datastore_that_fills_up() {
    let Some((ground, store)) = Ground::with_a_guest() else {
        return;
    };
    let host = LocalHost::new("a", &ground.run_dir()).unwrap();
    let keeper = Keeper::start(&store, &host, Role::Agent).unwrap();
    keeper.wait_live(PATIENCE).unwrap();
    let held = claim(&store, &keeper).unwrap();
    assert_eq!(held.notices().recv_timeout(PATIENCE), Ok(Notice::Run));
    ground.fill();
    let reach = Duration::from_millis(store.timing().reach_ms.into());
    let notice = held.notices().recv_timeout(2 * reach);
    assert!(notice.is_err(), "a full datastore stopped it: {notice:?}");
    held.release(PATIENCE).expect_err("there is no room for it");
}

#[test]
fn a_full_file_system_gets_no_half_a_datastore() {
    let Some(ground) = Ground::prepare() else {
        return;
    };
    ground.fill();
    let said = refusal(&ground.store(&["init"]));
    assert!(said.contains("free space"), "{said}");
    assert!(!ground.root().join("cluster.toml").exists());
}

#[test]
fn a_read_only_datastore_can_be_looked_at_and_not_changed() {
    let Some((ground, store)) = Ground::with_a_guest() else {
        return;
    };
    assert!(ground.mount(&["-o", "remount,ro"]));
    for look in ["status", "guests"] {
        let output = ground.store(&[look]);
        assert!(output.status.success(), "{look}: {output:?}");
    }
    assert_eq!(ground.only_wrong(), "mount the datastore read-write");
    let said = refusal(&ground.store(&["drill", "prepare", "web2"]));
    assert!(said.contains("mount the datastore read-write"), "{said}");
    let guest = store.guest("web1").unwrap();
    let spec = guest.spec::<Table>().unwrap();
    let refused = guest.update_spec(spec.revision, &spec.spec).unwrap_err();
    assert!(refused.to_string().contains("read-write"), "{refused}");
}

#[test]
fn somebody_elses_datastore_is_refused_with_the_remedy() {
    let Some((ground, _)) = Ground::with_a_guest() else {
        return;
    };
    fs::set_permissions(ground.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
            .arg(env!("CARGO_BIN_EXE_godwit-store"))
            .arg("-d")
            .arg(ground.root())
            .args(arguments);
        command.output().unwrap()
    };
    let said = refusal(&as_nobody(&["drill", "prepare", "web2"]));
    assert!(said.contains("run as a user that owns"), "{said}");
    fs::set_permissions(ground.root(), fs::Permissions::from_mode(0o700)).unwrap();
    let said = refusal(&as_nobody(&["status"]));
    assert!(said.contains("run as a user that owns"), "{said}");
}
