//! Leases on real files: several hosts played on one machine, each with its own run
//! directory and boot.

use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use shared_storage::gate::Gate;
use shared_storage::lease::{Ending, Grant, HandOver, HeldLease, LeaseFiles, Notice};
use shared_storage::{ClusterFile, Datastore, Keeper, LocalHost, Role, StoreError, Watcher};
use storage_core::timing::Timing;

/// Long enough for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(20);

/// Ten times the pace of the defaults.
const TIMING: Timing = Timing {
    heartbeat_interval_ms: 40,
    reach_ms: 400,
    watch_ms: 700,
    stop_ms: 100,
    in_flight_ms: 100,
    drift_ppm: 500,
};

struct World {
    dir: tempfile::TempDir,
    store: Datastore,
}

struct Host {
    host: LocalHost,
    keeper: Keeper,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        std::fs::create_dir(&root).unwrap();
        let store = Datastore::create(&root, &ClusterFile::new("test", TIMING)).unwrap();
        let spec = toml::Table::new();
        store.create_guest("web1", &spec, |_| Ok(())).unwrap();
        Self { dir, store }
    }

    fn host(&self, name: &str) -> Host {
        let run = self.dir.path().join(name);
        // A boot of its own: on one machine all would have the same.
        self.start(
            LocalHost::new(name, &run).unwrap().rebooted(&run),
            Role::Agent,
        )
    }

    fn start(&self, host: LocalHost, role: Role) -> Host {
        let keeper = Keeper::start(&self.store, &host, role).unwrap();
        keeper.wait_live(PATIENCE).unwrap();
        Host { host, keeper }
    }

    fn files(&self) -> LeaseFiles {
        self.store.guest("web1").unwrap().lease()
    }

    fn claim(&self, host: &Host, watcher: Option<&Watcher>) -> Result<HeldLease, StoreError> {
        let seen = self.files().look()?;
        HeldLease::claim(&host.keeper, self.files(), &seen, watcher, None, PATIENCE)
    }

    /// Claims as soon as the holder is seen to be gone.
    fn take_over(&self, host: &Host, watcher: &Watcher) -> HeldLease {
        let start = Instant::now();
        let seen = self.files().look().unwrap();
        loop {
            match HeldLease::claim(
                &host.keeper,
                self.files(),
                &seen,
                Some(watcher),
                None,
                PATIENCE,
            ) {
                Ok(held) => return held,
                Err(StoreError::Held { .. }) if start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn expect(held: &HeldLease, wanted: &Notice) {
    match held.notices().recv_timeout(PATIENCE) {
        Ok(notice) => assert_eq!(notice, *wanted),
        Err(error) => panic!("waited for {wanted:?}: {error}"),
    }
}

#[test]
fn a_rehearsal_of_the_hand_over_leaves_nothing_behind() {
    let world = World::new();
    let host = world.host("a");
    let _lease = world.claim(&host, None).unwrap();
    let (before, last) = (names(&world), world.files().last().unwrap());
    world.files().rehearse().unwrap();
    assert_eq!(
        (names(&world), world.files().last().unwrap()),
        (before, last)
    );
}

fn names(world: &World) -> Vec<std::ffi::OsString> {
    let files = world.files();
    let entries = std::fs::read_dir(files.dir()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

#[test]
fn one_holder_at_a_time_and_release_frees_at_once() {
    let world = World::new();
    let (a, b) = (world.host("a"), world.host("b"));
    let held = world.claim(&a, None).unwrap();
    expect(&held, &Notice::Run);
    held.gate().pass().unwrap();
    let refused = world.claim(&b, None).unwrap_err().to_string();
    assert!(refused.contains("a (boot"), "{refused}");
    held.release(PATIENCE).unwrap();
    let held = world.claim(&b, None).unwrap();
    assert_eq!(held.record().unwrap().epoch, 3);
}

#[test]
fn a_second_process_of_the_same_host_is_refused() {
    let world = World::new();
    let a = world.host("a");
    let _held = world.claim(&a, None).unwrap();
    let again = HeldLease::adopt(&a.keeper, world.files(), None, Duration::from_millis(50));
    assert!(matches!(again, Err(StoreError::RunsHere(_))), "{again:?}");
}

#[test]
fn what_the_agent_claimed_its_guest_adopts() {
    let world = World::new();
    let a = world.host("a");
    drop(world.claim(&a, None).unwrap());
    let held = HeldLease::adopt(&a.keeper, world.files(), None, PATIENCE).unwrap();
    expect(&held, &Notice::Run);
    assert_eq!(held.record().unwrap().epoch, 1);
}

#[test]
fn a_host_that_falls_silent_stops_and_is_taken_over() {
    let world = World::new();
    let (a, b) = (world.host("a"), world.host("b"));
    let mut watcher = Watcher::new(&world.store, &b.keeper);
    watcher.watch("a").unwrap();
    let held = world.claim(&a, None).unwrap();
    expect(&held, &Notice::Run);
    let gate = held.gate();
    drop(a.keeper);
    let taken = world.take_over(&b, &watcher);
    gate.pass().unwrap_err();
    assert_eq!(taken.record().unwrap().grant, Grant::TakenOver);
    expect(&held, &Notice::Pause);
    // It comes back, finds that it lost, and must not run again.
    let back = world.start(a.host, Role::Agent);
    let ending = held.notices().recv_timeout(PATIENCE).unwrap();
    assert!(
        matches!(ending, Notice::Ended(Ending::Lost(_))),
        "{ending:?}"
    );
    gate.pass().unwrap_err();
    drop(back);
}

#[test]
fn a_lapse_that_nobody_used_is_a_pause_and_a_new_epoch() {
    let world = World::new();
    let a = world.host("a");
    let held = world.claim(&a, None).unwrap();
    expect(&held, &Notice::Run);
    drop(a.keeper);
    expect(&held, &Notice::Pause);
    held.gate().pass().unwrap_err();
    let _back = world.start(a.host, Role::Guest);
    expect(&held, &Notice::Run);
    held.gate().pass().unwrap();
    let record = held.record().unwrap();
    assert_eq!((record.epoch, record.grant), (2, Grant::Renewed));
}

#[test]
fn guests_keep_the_host_alive_when_the_agent_is_gone() {
    let world = World::new();
    let a = world.host("a");
    let held = world.claim(&a, None).unwrap();
    expect(&held, &Notice::Run);
    let guest = Keeper::start(&world.store, &a.host, Role::Guest).unwrap();
    drop(a.keeper);
    let quiet = held
        .notices()
        .recv_timeout(Duration::from_millis(u64::from(TIMING.watch_ms)));
    assert_eq!(quiet, Err(RecvTimeoutError::Timeout));
    held.gate().pass().unwrap();
    drop(guest);
}

#[test]
fn a_hand_over_moves_the_right_and_never_back() {
    let world = World::new();
    let (a, b) = (world.host("a"), world.host("b"));
    let source = world.claim(&a, None).unwrap();
    expect(&source, &Notice::Run);
    let HandOver::Done(record) = source.hand_over(b.keeper.holder(), [7; 16], PATIENCE) else {
        panic!("not handed over")
    };
    assert_eq!((record.epoch, record.grant), (2, Grant::HandedOver));
    source.gate().pass().unwrap_err();
    let target = HeldLease::adopt(&b.keeper, world.files(), None, PATIENCE).unwrap();
    expect(&target, &Notice::Run);
    target.gate().pass().unwrap();
    assert_eq!(target.record().unwrap(), record);
}

#[test]
fn a_rebooted_host_takes_its_own_leases_back_at_once() {
    let world = World::new();
    let a = world.host("a");
    drop(world.claim(&a, None).unwrap());
    drop(a.keeper);
    let run = world.dir.path().join("a-again");
    let again = world.start(a.host.rebooted(&run), Role::Agent);
    let held = world.claim(&again, None).unwrap();
    assert_eq!(held.record().unwrap().note, "a rebooted");
}

#[test]
fn of_many_contenders_one_wins() {
    let world = World::new();
    let hosts: Vec<Host> = ["a", "b", "c", "d"]
        .iter()
        .map(|name| world.host(name))
        .collect();
    for round in 1..=10 {
        let winners: Vec<HeldLease> = std::thread::scope(|scope| {
            let world = &world;
            let race = |host| scope.spawn(move || world.claim(host, None).ok());
            let racers: Vec<_> = hosts.iter().map(race).collect();
            racers
                .into_iter()
                .filter_map(|racer| racer.join().unwrap())
                .collect()
        });
        assert_eq!(winners.len(), 1, "round {round}");
        for winner in winners {
            winner.release(PATIENCE).unwrap();
        }
    }
    assert!(
        files_in(world.files().dir()) < 10,
        "old epochs and temporary files are removed"
    );
}

fn files_in(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}
