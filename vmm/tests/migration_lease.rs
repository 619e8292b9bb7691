//! The lease of a guest as it changes hands: two hosts on one local datastore.

use std::path::Path;
use std::time::Duration;

use shared_storage::lease::{HandOver, HeldLease};
use shared_storage::{ClusterFile, Datastore, Keeper, LocalHost, Role};
use storage_core::timing::Timing;
use vmm::lease::{Attempt, Citizen, Lease, Verdict};

/// Long enough for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(20);
const FIRST: Attempt = [1; 16];
const SECOND: Attempt = [2; 16];

struct World {
    dir: tempfile::TempDir,
    store: Datastore,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        std::fs::create_dir(&root).unwrap();
        let cluster = ClusterFile::new("test", Timing::default());
        let store = Datastore::create(&root, &cluster).unwrap();
        let spec = toml::Table::new();
        store.create_guest("web1", &spec, |_| Ok(())).unwrap();
        Self { dir, store }
    }

    fn citizen(&self, host: &str) -> Citizen {
        let run = self.dir.path().join(host);
        let host = LocalHost::new(host, Path::new(&run)).unwrap();
        Citizen::new(self.store.clone(), &host, "web1").unwrap()
    }

    /// The lease in the hands of `host`, which its agent has claimed.
    fn held(&self, host: &str) -> Lease {
        let citizen = self.citizen(host);
        let agent = LocalHost::new(host, &self.dir.path().join(host)).unwrap();
        let keeper = Keeper::start(&self.store, &agent, Role::Guest).unwrap();
        let files = self.store.guest("web1").unwrap().lease();
        let seen = files.look().unwrap();
        drop(HeldLease::claim(&keeper, files, &seen, None, None, PATIENCE).unwrap());
        citizen.adopt().unwrap()
    }
}

#[test]
fn a_target_that_was_left_behind_does_not_take_a_later_attempt_for_its_own() {
    let world = World::new();
    let source = world.held("a");
    let from = source.record().unwrap();
    let stale = world.citizen("b");
    stale.check_offer(&from).unwrap();
    assert_eq!(stale.verdict(&FIRST, &from).unwrap(), Verdict::Open);
    // The first attempt came to nothing; the second goes to the same boot of the same host.
    let second = world.citizen("b");
    second.check_offer(&from).unwrap();
    let handed = source.hand_over(second.holder(), SECOND, PATIENCE);
    let HandOver::Done(record) = handed else {
        panic!("{handed:?}")
    };
    assert_eq!(
        stale.verdict(&FIRST, &from).unwrap(),
        Verdict::Void(record.clone())
    );
    stale.check_offer(&from).unwrap_err();
    let why = stale.adopt_from(&FIRST, &from).err().unwrap();
    assert!(why.contains("went to b"), "{why}");
    assert_eq!(
        source.look_again(&SECOND, &from),
        HandOver::Done(record.clone())
    );
    let adopted = second.adopt_from(&SECOND, &from).unwrap();
    assert_eq!(adopted.record(), Some(record));
}

#[test]
fn a_claim_by_the_agent_is_no_hand_over() {
    let world = World::new();
    let source = world.held("a");
    let from = source.record().unwrap();
    let target = world.citizen("b");
    drop(source);
    // The source died; its lease was declared free, and b's agent claimed it to boot the guest.
    let files = world.store.guest("web1").unwrap().lease();
    files.force_free("a is gone").unwrap();
    let booted = world.held("b");
    let verdict = target.verdict(&FIRST, &from).unwrap();
    assert!(matches!(verdict, Verdict::Void(_)), "{verdict:?}");
    drop(booted);
    target.adopt_from(&FIRST, &from).map(drop).unwrap_err();
}
