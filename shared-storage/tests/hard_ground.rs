//! A datastore that is full, read-only, silent or somebody else's: every refusal names the thing
//! and the remedy, and what was there before is there afterwards.
//!
//! Needs root for its mounts; says so and is skipped without.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use ground::{Ground, Kind};
use shared_storage::gate::Gate;
use shared_storage::image::{Disk, DiskOptions, Format, Made, duplicate};
use shared_storage::lease::{Grant, HandOver, HeldLease, Notice};
use shared_storage::{ClusterFile, Datastore, Keeper, LocalHost, Role, StoreError, Watcher};
use storage_core::timing::Timing;
use toml::Table;
use vm_memory::VolatileSlice;

const PATIENCE: Duration = Duration::from_secs(20);
/// User and group of nobody.
const NOBODY: &str = "65534";

/// How much fits on a file system that is to be filled.
const ROOM_BYTES: u64 = 512 << 10;

/// A file system of its own, with a datastore and one guest on it.
struct Place {
    ground: Ground,
}

impl Place {
    /// Nothing where this process may not mount.
    fn prepare(made: Result<Ground, String>) -> Option<Self> {
        match made {
            Ok(ground) => Some(Self { ground }),
            Err(why) => {
                ground::skip(why);
                None
            }
        }
    }

    fn small() -> Option<(Self, Datastore)> {
        Self::prepare(Ground::in_memory(ROOM_BYTES)).map(Self::with_a_guest)
    }

    fn with_a_guest(self) -> (Self, Datastore) {
        let cluster = ClusterFile::new("test", Timing::default());
        let store = Datastore::create(&self.root(), &cluster).unwrap();
        let spec = Table::from_iter([("memory_mib".to_owned(), 64.into())]);
        store.create_guest("web1", &spec, |_| Ok(())).unwrap();
        (self, store)
    }

    fn root(&self) -> PathBuf {
        self.ground.root()
    }

    fn run_dir(&self) -> PathBuf {
        self.ground.beside().join("run")
    }

    /// A host that beats on it.
    fn keeper(&self, store: &Datastore) -> Keeper {
        let host = LocalHost::new("a", &self.run_dir()).unwrap();
        let keeper = Keeper::start(store, &host, Role::Agent).unwrap();
        keeper.wait_live(PATIENCE).unwrap();
        keeper
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
    let Some((place, store)) = Place::small() else {
        return;
    };
    let keeper = place.keeper(&store);
    let ballast = place.ground.fill();
    drop(keeper);
    let before = place.content();

    let guest = store.guest("web1").unwrap();
    let spec = guest.spec::<Table>().unwrap();
    let refused = guest.update_spec(spec.revision, &spec.spec).unwrap_err();
    assert!(refused.to_string().contains("free space"), "{refused}");
    let refused = store
        .create_guest("web2", &spec.spec, |_| Ok(()))
        .unwrap_err();
    assert!(refused.to_string().contains("free space"), "{refused}");
    assert_eq!(place.content(), before, "a refused change left its traces");
    assert_eq!(place.only_wrong(), "free space on the datastore");

    // The heartbeat is rewritten in place, so that a full datastore costs no host its guests.
    let keeper = place.keeper(&store);
    let refused = claim(&store, &keeper).unwrap_err();
    assert!(refused.to_string().contains("web1"), "{refused}");
    fs::remove_file(ballast).unwrap();
    claim(&store, &keeper).unwrap();
}

#[test]
fn a_lease_outlives_a_datastore_that_fills_up() {
    let Some((place, store)) = Place::small() else {
        return;
    };
    let keeper = place.keeper(&store);
    let held = claim(&store, &keeper).unwrap();
    assert_eq!(held.notices().recv_timeout(PATIENCE), Ok(Notice::Run));
    place.ground.fill();
    let reach = Duration::from_millis(store.timing().reach_ms.into());
    let notice = held.notices().recv_timeout(2 * reach);
    assert!(notice.is_err(), "a full datastore stopped it: {notice:?}");
    held.release(PATIENCE).expect_err("there is no room for it");
}

#[test]
fn a_full_file_system_gets_no_half_a_datastore() {
    let Some(place) = Place::prepare(Ground::in_memory(ROOM_BYTES)) else {
        return;
    };
    place.ground.fill();
    let said = refusal(&place.store(&["init"]));
    assert!(said.contains("free space"), "{said}");
    assert!(!place.root().join("cluster.toml").exists());
}

#[test]
fn a_read_only_datastore_can_be_looked_at_and_not_changed() {
    let Some((place, store)) = Place::small() else {
        return;
    };
    place.ground.remount("ro").unwrap();
    for look in ["status", "guests"] {
        let output = place.store(&[look]);
        assert!(output.status.success(), "{look}: {output:?}");
    }
    assert_eq!(place.only_wrong(), "mount the datastore read-write");
    let said = refusal(&place.store(&["drill", "prepare", "web2"]));
    assert!(said.contains("mount the datastore read-write"), "{said}");
    let guest = store.guest("web1").unwrap();
    let spec = guest.spec::<Table>().unwrap();
    let refused = guest.update_spec(spec.revision, &spec.spec).unwrap_err();
    assert!(refused.to_string().contains("read-write"), "{refused}");
}

#[test]
fn somebody_elses_datastore_is_refused_with_the_remedy() {
    let Some((place, _)) = Place::small() else {
        return;
    };
    fs::set_permissions(place.ground.beside(), fs::Permissions::from_mode(0o755)).unwrap();
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
            .arg(env!("CARGO_BIN_EXE_godwit-store"))
            .arg("-d")
            .arg(place.root())
            .args(arguments);
        command.output().unwrap()
    };
    let said = refusal(&as_nobody(&["drill", "prepare", "web2"]));
    assert!(said.contains("run as a user that owns"), "{said}");
    fs::set_permissions(place.root(), fs::Permissions::from_mode(0o700)).unwrap();
    let said = refusal(&as_nobody(&["status"]));
    assert!(said.contains("run as a user that owns"), "{said}");
}

/// Whatever is asked of a storage that does not answer, the caller gets its answer in time, and
/// nothing is lost when the storage is back.
#[test]
fn a_silent_datastore_stops_the_guest_and_hangs_nobody() {
    let Some(place) = Place::prepare(Ground::in_file(Kind::Ext4)) else {
        return;
    };
    let (place, store) = place.with_a_guest();
    let keeper = place.keeper(&store);
    let mut watcher = Watcher::new(&store, &keeper);
    watcher.watch("a").unwrap();
    let held = claim(&store, &keeper).unwrap();
    assert_eq!(held.notices().recv_timeout(PATIENCE), Ok(Notice::Run));
    let gate = held.gate();
    gate.pass().unwrap();

    place.ground.freeze().unwrap();
    assert_eq!(held.notices().recv_timeout(PATIENCE), Ok(Notice::Pause));
    gate.pass().unwrap_err();
    assert!(watcher.sighting("a").is_some());
    let moment = Duration::from_millis(50);
    let to = keeper.holder();
    assert_eq!(held.hand_over(to, [7; 16], moment), HandOver::Unknown);
    keeper.wait_live(moment).unwrap_err();
    let files = store.guest("web1").unwrap().lease().patient_for(moment);
    let silent =
        |error: StoreError| assert!(matches!(error, StoreError::NoAnswer { .. }), "{error}");
    silent(files.rehearse().unwrap_err());
    silent(HeldLease::adopt(&keeper, files, None, moment).unwrap_err());

    place.ground.thaw().unwrap();
    assert_eq!(held.notices().recv_timeout(PATIENCE), Ok(Notice::Run));
    gate.pass().unwrap();
    let record = held.record().unwrap();
    assert_eq!((record.epoch, record.grant), (2, Grant::Renewed));

    place.ground.freeze().unwrap();
    assert_eq!(held.notices().recv_timeout(PATIENCE), Ok(Notice::Pause));
    let refused = held.release(moment).unwrap_err();
    assert!(refused.to_string().contains("not answered"), "{refused}");
    place.ground.thaw().unwrap();
}

/// A second image takes no room where blocks can be shared, and is a copy where they cannot.
#[test]
fn an_image_shares_its_blocks_where_the_file_system_can() {
    const BYTES: usize = 16 << 20;
    for (kind, shares) in [(Kind::Xfs, true), (Kind::Ext4, false)] {
        let Some(place) = Place::prepare(Ground::in_file(kind)) else {
            return;
        };
        let (source, second) = (place.root().join("one.raw"), place.root().join("two.raw"));
        fs::write(&source, vec![7; BYTES]).unwrap();
        let options = || DiskOptions::new(&source, Format::Raw);
        let free = || {
            File::open(place.root()).unwrap().sync_all().unwrap();
            let found = rustix::fs::statvfs(place.root()).unwrap();
            (found.f_bfree * found.f_frsize) as usize
        };
        File::open(&source).unwrap().sync_all().unwrap();
        let before = free();
        let made = duplicate(options(), &second, |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(made == Made::Reflink, shares, "{kind:?}: {made:?}");
        assert_eq!(before - free() < BYTES / 2, shares, "{kind:?}");
        // Each is its own from the first write on.
        let disk = Disk::open(DiskOptions::new(&second, Format::Raw)).unwrap();
        let mut data = vec![8; 4096];
        disk.write_at(0, &[VolatileSlice::from(&mut data[..])])
            .unwrap();
        drop(disk);
        assert!(fs::read(&source).unwrap() == vec![7; BYTES], "{kind:?}");
        assert_eq!(
            fs::read(&second).unwrap()[..4097],
            [vec![8; 4096], vec![7]].concat()
        );
    }
}
