//! What everybody may look at while a migration is under way.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vmm_core::migration::{Phase, Progress};

use super::MigrationError;
use super::lifeline::Lifeline;

/// Whoever asked for a migration through the API looks at it within this, and as often.
const LINGER_MAX: Duration = Duration::from_secs(1);
const LINGER_POLL: Duration = Duration::from_millis(5);

/// One migration, from outside.
#[derive(Debug)]
pub struct Watch {
    progress: Mutex<Progress>,
    pub(super) sent_bytes: AtomicU64,
    pub(super) skipped_bytes: AtomicU64,
    /// What sent and skipped bytes will be at the end of the round.
    round_end_bytes: AtomicU64,
    pub(super) lifeline: Lifeline,
    begun: Instant,
    was_seen: AtomicBool,
    end_was_seen: AtomicBool,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            progress: Mutex::new(Progress::begun()),
            sent_bytes: AtomicU64::new(0),
            skipped_bytes: AtomicU64::new(0),
            round_end_bytes: AtomicU64::new(0),
            lifeline: Lifeline::default(),
            begun: Instant::now(),
            was_seen: AtomicBool::new(false),
            end_was_seen: AtomicBool::new(false),
        }
    }
}

impl Watch {
    /// How far it is.
    pub fn progress(&self) -> Progress {
        let mut progress = self.lock().clone();
        progress.sent_bytes = self.sent_bytes.load(Ordering::Relaxed);
        let end_bytes = self.round_end_bytes.load(Ordering::Relaxed);
        progress.left_bytes = end_bytes.saturating_sub(self.done_bytes());
        self.was_seen.store(true, Ordering::Release);
        if progress.phase == Phase::Done {
            self.end_was_seen.store(true, Ordering::Release);
        }
        progress
    }

    /// Leave whoever watches the migration the time to see how it ended. One that nobody has
    /// looked at since it was asked for is not waited for any longer.
    pub fn wait_until_end_was_seen(&self) {
        let watched = self.was_seen.load(Ordering::Acquire);
        let since = if watched { Instant::now() } else { self.begun };
        let give_up = since + LINGER_MAX;
        while !self.end_was_seen.load(Ordering::Acquire) && Instant::now() < give_up {
            thread::sleep(LINGER_POLL);
        }
    }

    /// Give up, unless it is too late for that.
    pub fn cancel(&self) {
        self.lifeline.cancel();
    }

    /// It did not even begin.
    pub(super) fn fail(&self, error: &MigrationError) {
        self.update(|progress| {
            progress.phase = Phase::Failed;
            progress.error = Some(error.to_string());
        });
    }

    /// A round over so many bytes of pages begins.
    pub(super) fn begin_round(&self, round: u32, bytes: u64) {
        self.round_end_bytes
            .store(self.done_bytes() + bytes, Ordering::Relaxed);
        self.update(|progress| progress.round = round);
    }

    fn done_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed) + self.skipped_bytes.load(Ordering::Relaxed)
    }

    /// So many bytes of pages went out, and so many needed not.
    pub(super) fn count(&self, sent_bytes: u64, skipped_bytes: u64) {
        self.sent_bytes.fetch_add(sent_bytes, Ordering::Relaxed);
        self.skipped_bytes
            .fetch_add(skipped_bytes, Ordering::Relaxed);
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_round_shrinks_by_what_was_sent_or_left_out() {
        let watch = Watch::default();
        watch.begin_round(1, 100);
        watch.count(10, 50);
        assert_eq!(watch.progress().left_bytes, 40);
        watch.count(40, 0);
        watch.begin_round(2, 30);
        let progress = watch.progress();
        assert_eq!((progress.round, progress.left_bytes), (2, 30));
    }
}
