//! Another machine under our name.
//!
//! To those who watch, a heartbeat of another boot says that its host was rebooted, and that
//! what it held is free at once. With two machines under one name that would not be true:
//! their guests would be taken over while they run. So an agent looks before it first beats.

use std::thread;
use std::time::{Duration, Instant};

use storage_core::record::HeartbeatRecord;

use crate::clock::LocalHost;
use crate::datastore::Datastore;
use crate::error::StoreError;
use crate::heartbeat;
use crate::page::Page;

/// How often the record is read meanwhile.
const POLL: Duration = Duration::from_millis(50);

/// What somebody else writes as the heartbeat of `host`; nothing if nobody does.
///
/// Takes no time when the record is of this boot's own processes, because an agent is started
/// again. Otherwise it is watched for as long as a host may act without changing it.
pub fn namesake(
    store: &Datastore,
    host: &LocalHost,
) -> Result<Option<HeartbeatRecord>, StoreError> {
    let path = store.heartbeat_path(host.name())?;
    // None yet, or one that was torn when its writer died: written anew either way.
    let Ok(first) = heartbeat::read(&path) else {
        return Ok(None);
    };
    let page = Page::open(host, store.cluster().id)?;
    let ours = |record: &HeartbeatRecord| {
        record.incarnation == host.incarnation() && record.counter <= page.counter()
    };
    if ours(&first) {
        return Ok(None);
    }
    let timing = store.timing();
    let longest_us = timing.reach_us() + 2 * timing.interval_us();
    let give_up = Instant::now() + Duration::from_micros(longest_us);
    while Instant::now() < give_up {
        thread::sleep(POLL);
        match heartbeat::read(&path) {
            Ok(record) if record != first => return Ok((!ours(&record)).then_some(record)),
            _ => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use storage_core::timing::Timing;

    use super::*;
    use crate::{ClusterFile, Keeper, Role};

    #[test]
    fn one_that_lives_is_found_and_the_dead_and_ourselves_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let run = |name: &str| dir.path().join(name);
        let root = run("store");
        std::fs::create_dir(&root).unwrap();
        let store = Datastore::create(&root, &ClusterFile::new("test", Timing::default())).unwrap();
        let here = LocalHost::new("a", &run("here")).unwrap();
        assert_eq!(namesake(&store, &here).unwrap(), None, "the first of all");

        let there = here.rebooted(&run("there"));
        let other = Keeper::start(&store, &there, Role::Agent).unwrap();
        other.wait_live(Duration::from_mins(1)).unwrap();
        let found = namesake(&store, &here).unwrap().unwrap();
        assert_eq!(found.incarnation, there.incarnation());
        assert_eq!(namesake(&store, &there).unwrap(), None, "itself");

        // Its last write may come after it was dropped.
        drop(other);
        let gone = (0..3).any(|_| namesake(&store, &here).unwrap().is_none());
        assert!(gone, "a dead one is taken for one that lives");
    }
}
