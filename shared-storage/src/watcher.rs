//! Watches the heartbeats of other hosts.
//!
//! One thread per watched host, because a read hangs as long as the storage does. Results
//! are taken from memory and never wait.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use storage_core::observer::{Observer, Verdict};
use storage_core::record::{HeartbeatRecord, Holder};
use storage_core::timing::Timing;

use crate::clock::boottime_us;
use crate::datastore::Datastore;
use crate::error::StoreError;
use crate::heartbeat;
use crate::keeper::Keeper;
use crate::page::Page;

/// No more hosts are watched than this.
const HOST_LIMIT: usize = 1024;
/// Longest sleep between two reads, so that a watcher that is dropped ends soon.
const NAP_US: u64 = 500_000;

/// Watches heartbeats for as long as it lives. A clone sees what this one sees.
#[derive(Debug, Clone)]
pub struct Watcher {
    store: Datastore,
    page: Arc<Page>,
    watched: BTreeMap<String, Arc<Watched>>,
}

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    timing: Timing,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    observer: Observer,
    last_error: Option<String>,
}

/// What is known about a host's heartbeat, for those who decide and those who look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The record read last.
    pub record: Option<HeartbeatRecord>,
    /// For how long it has certainly stood still, in microseconds of our own clock in which
    /// our own storage accesses succeeded.
    pub silent_us: u64,
    /// Why the last read failed; none when it did not.
    pub last_error: Option<String>,
}

impl Watcher {
    /// A watcher that watches nobody yet. Time counts while `keeper`'s own heartbeat reaches
    /// the datastore.
    pub fn new(store: &Datastore, keeper: &Keeper) -> Self {
        let page = keeper.page().clone();
        Self {
            store: store.clone(),
            page,
            watched: BTreeMap::new(),
        }
    }

    /// Watches `host` from now on.
    pub fn watch(&mut self, host: &str) -> Result<(), StoreError> {
        if self.watched.contains_key(host) || self.watched.len() >= HOST_LIMIT {
            return Ok(());
        }
        let path = self.store.heartbeat_path(host)?;
        let state = Mutex::new(State::default());
        let watched = Arc::new(Watched {
            path,
            timing: *self.store.timing(),
            state,
        });
        let (weak, page) = (Arc::downgrade(&watched), self.page.clone());
        thread::Builder::new()
            .name("watch".into())
            .spawn(move || run(&weak, &page))
            .map_err(StoreError::io("watch the heartbeat of", host))?;
        self.watched.insert(host.into(), watched);
        Ok(())
    }

    /// Stops watching `host`.
    pub fn forget(&mut self, host: &str) {
        self.watched.remove(host);
    }

    /// What is known about `host`; none when it is not watched.
    pub fn sighting(&self, host: &str) -> Option<Sighting> {
        let state = self.watched.get(host)?.lock();
        Some(Sighting {
            record: state.observer.record().cloned(),
            silent_us: state.observer.silent_us(),
            last_error: state.last_error.clone(),
        })
    }

    /// Whether `holder`, whose lease was read at `lease_read_us`, is gone. `can_fence` says
    /// whether the target fences, so that the short watch is enough.
    pub fn verdict(&self, holder: &Holder, lease_read_us: u64, can_fence: bool) -> Verdict {
        let watch_us = self.store.timing().watch_us(can_fence);
        self.watched
            .get(&holder.host)
            .map_or(Verdict::Unknown, |watched| {
                watched
                    .lock()
                    .observer
                    .verdict(holder, lease_read_us, watch_us)
            })
    }
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads once and says when to read again.
    fn read(&self, page: &Page) -> u64 {
        let issued_us = boottime_us();
        let read = heartbeat::sight(&self.path);
        let answered_us = boottime_us();
        let hold = page.hold();
        let own_term = hold.is_live(answered_us).then(|| hold.term());
        let mut state = self.lock();
        match read {
            Ok(sight) => {
                state
                    .observer
                    .read(issued_us, answered_us, &sight, own_term, &self.timing);
                state.last_error = None;
            }
            Err(error) => {
                state.observer.failed();
                state.last_error = Some(error.to_string());
            }
        }
        // Both watches end on a read of their own.
        let short_us = state
            .observer
            .next_read_us(&self.timing, self.timing.watch_us(true));
        let long_us = state
            .observer
            .next_read_us(&self.timing, self.timing.watch_us(false));
        let next_us = short_us.min(long_us);
        if next_us > answered_us {
            next_us
        } else {
            answered_us + self.timing.interval_us()
        }
    }
}

fn run(watched: &Weak<Watched>, page: &Page) {
    let mut next_us = 0;
    while let Some(watched) = watched.upgrade() {
        let now_us = boottime_us();
        if now_us >= next_us {
            next_us = watched.read(page);
        }
        drop(watched);
        let wait_us = next_us.saturating_sub(boottime_us()).min(NAP_US);
        thread::sleep(Duration::from_micros(wait_us));
    }
}
