//! What everybody may look at while a migration is under way.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vmm_core::control::Happening;
use vmm_core::migration::{Phase, Progress, eta_ms};

use super::MigrationError;
use super::lifeline::Lifeline;
use crate::events::Events;

/// Whoever asked for a migration through the API looks at it within this, and as often: on a
/// crowded host that may take a while.
const LINGER_MAX: Duration = Duration::from_secs(5);
const LINGER_POLL: Duration = Duration::from_millis(5);

/// One migration, from outside.
#[derive(Debug)]
pub struct Watch {
    inner: Mutex<Inner>,
    /// Where its progress is told without being asked for.
    events: Events,
    pub(super) sent_bytes: AtomicU64,
    pub(super) skipped_bytes: AtomicU64,
    pub(super) lifeline: Lifeline,
    begun: Instant,
    was_seen: AtomicBool,
    end_was_seen: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    progress: Progress,
    mark: Mark,
}

/// How things stood when the round began.
#[derive(Debug)]
struct Mark {
    began: Instant,
    sent_bytes: u64,
    /// Sent and skipped.
    done_bytes: u64,
    /// The same at the end of the round.
    end_bytes: u64,
}

impl Mark {
    fn per_second(&self, bytes: u64) -> u64 {
        let took_us = self.began.elapsed().as_micros().max(1) as u64;
        bytes.saturating_mul(1_000_000) / took_us
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            inner: Mutex::new(Inner {
                progress: Progress::begun(),
                mark: Mark {
                    began: Instant::now(),
                    sent_bytes: 0,
                    done_bytes: 0,
                    end_bytes: 0,
                },
            }),
            events: Events::default(),
            sent_bytes: AtomicU64::new(0),
            skipped_bytes: AtomicU64::new(0),
            lifeline: Lifeline::default(),
            begun: Instant::now(),
            was_seen: AtomicBool::new(false),
            end_was_seen: AtomicBool::new(false),
        }
    }
}

impl Watch {
    /// One whose progress is told to `events`.
    pub fn told_to(events: Events) -> Self {
        Self {
            events,
            ..Self::default()
        }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let progress = self.look();
        self.was_seen.store(true, Ordering::Release);
        if progress.phase == Phase::Done {
            self.end_was_seen.store(true, Ordering::Release);
        }
        progress
    }

    fn look(&self) -> Progress {
        let (sent_bytes, done_bytes) = (self.sent_bytes.load(Ordering::Relaxed), self.done_bytes());
        let inner = self.lock();
        let mut progress = inner.progress.clone();
        let mark = &inner.mark;
        progress.sent_bytes = sent_bytes;
        progress.left_bytes = mark.end_bytes.saturating_sub(done_bytes);
        if progress.round == 1 && progress.phase == Phase::Copying {
            progress.rate = mark.per_second(sent_bytes - mark.sent_bytes);
        }
        // What is left out takes some time, too.
        let through = mark.per_second(done_bytes - mark.done_bytes);
        let rate = through.max(progress.rate);
        progress.eta_ms = eta_ms(progress.left_bytes, rate, progress.dirty_rate);
        progress
    }

    /// Leave whoever watches the migration the time to ask how it ended. Whoever listens to
    /// events is told without asking, and one that nobody has looked at since it was asked for
    /// is not waited for any longer. The API closes only when all answers are written.
    pub fn wait_until_end_was_seen(&self) {
        let watched = self.was_seen.load(Ordering::Acquire);
        if !watched && self.events.are_heard() {
            return;
        }
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
        self.tell();
    }

    /// A round over so many bytes of pages begins.
    pub(super) fn begin_round(&self, round: u32, bytes: u64) {
        let (sent_bytes, done_bytes) = (self.sent_bytes.load(Ordering::Relaxed), self.done_bytes());
        let mut inner = self.lock();
        inner.progress.round = round;
        inner.mark = Mark {
            began: Instant::now(),
            sent_bytes,
            done_bytes,
            end_bytes: done_bytes + bytes,
        };
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

    /// Tell how far it is.
    pub(super) fn tell(&self) {
        self.events
            .tell(Happening::Migration(Box::new(self.look())));
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock().progress);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
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
        // Nothing of this round is there yet, and no rate is known.
        assert_eq!((progress.rate, progress.eta_ms), (0, None));
        watch.count(10, 0);
        assert!(watch.progress().eta_ms.is_some());
    }
}
