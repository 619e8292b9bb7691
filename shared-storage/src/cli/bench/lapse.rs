//! What happens when a host's heartbeat does not get through any more.

use std::thread;
use std::time::{Duration, Instant};

use storage_core::observer::Verdict;

use super::{GUESTS, PATIENCE, Stage, name};
use crate::clock::boottime_us;
use crate::error::StoreError;
use crate::lease::{HeldLease, Notice};
use crate::watcher::Watcher;

const POLL: Duration = Duration::from_millis(2);

/// How late each guest of a host is told to pause, in microseconds after the deadline.
pub(super) fn stops(stage: &Stage, host: &str) -> Result<Vec<u64>, StoreError> {
    let keeper = stage.host(host)?;
    let held = (0..GUESTS)
        .map(|guest| stage.claim(&keeper, guest))
        .collect::<Result<Vec<_>, _>>()?;
    let page = keeper.page().clone();
    let page = &page;
    drop(keeper);
    let late_us = |held: &HeldLease| {
        let paused = held.notices().iter().any(|notice| notice == Notice::Pause);
        paused.then(|| boottime_us().saturating_sub(page.hold().deadline_us()))
    };
    let samples = thread::scope(|scope| {
        let guests: Vec<_> = held
            .into_iter()
            .map(|held| {
                scope.spawn(move || {
                    let late_us = late_us(&held);
                    // The next host finds it free.
                    let _ = held.release(PATIENCE);
                    late_us
                })
            })
            .collect();
        guests
            .into_iter()
            .filter_map(|guest| guest.join().ok().flatten())
            .collect()
    });
    Ok(samples)
}

/// A host loses its power: when does another hold its guest's lease, in milliseconds after the
/// last heartbeat?
pub(super) fn take_over(stage: &Stage, host: &str, fenced: bool) -> Result<u64, StoreError> {
    let other = stage.host(&format!("{host}b"))?;
    let old_name = format!("{host}a");
    let old = stage.host(&old_name)?;
    let held = stage.claim(&old, 0)?;
    let mut watcher = Watcher::new(&stage.store, &other);
    watcher.watch(&old_name)?;
    let guest = stage.store.guest(&name(0))?;
    let seen = guest.lease().look()?;
    let give_up = Instant::now() + PATIENCE;
    while watcher.verdict(&old.holder(), seen.read_us, fenced) == Verdict::Unknown {
        if Instant::now() > give_up {
            return Err(StoreError::NoAnswer {
                act: "the watching",
                subject: old_name,
                waited_ms: PATIENCE.as_millis() as u64,
            });
        }
        thread::sleep(POLL);
    }
    let page = old.page().clone();
    drop(old);
    let last_us = page.acked_us();
    let taken = loop {
        let fence = if fenced { guest.fence()? } else { None };
        let files = guest.lease();
        match HeldLease::claim(&other, files, &seen, Some(&watcher), fence, PATIENCE) {
            Err(StoreError::Held { .. }) => thread::sleep(POLL),
            taken => break taken?,
        }
    };
    let takeover_ms = boottime_us().saturating_sub(last_us) / 1000;
    drop(held);
    taken.release(PATIENCE)?;
    Ok(takeover_ms)
}
