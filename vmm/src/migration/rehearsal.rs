//! A dry run at the source, after the target has found that the guest would fit: how fast
//! memory travels, how fast the guest dirties it, and what would come of that.
//!
//! Memory is read and sent as in a first round, but only for a moment, and the target throws it
//! away. The guest goes on meanwhile; of what it writes only a sample of pages is watched, each
//! of which costs it one fault.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_core::forecast::{Dirtied, Measured, forecast};
use vmm_core::migration::{Forecast, Phase};
use vmm_core::standstill::Standstill;

use super::MigrationError;
use super::dirty::{PAGE_BYTES, SlotBitmap};
use super::pages::Touched;
use super::round::CHUNK_WORDS;
use super::session::Session;
use super::source::SourceGuest;
use super::standstill::{measure_source, measure_target};

/// No more memory is sent after so long ...
const PROBE_TIME: Duration = Duration::from_millis(150);
/// ... in portions of so much of the guest's memory, spread evenly over all of it ...
const PORTION_BYTES: u64 = 16 << 20;
/// ... but some are, for a single one says little on a busy machine ...
const PORTIONS_MIN: usize = 3;
/// ... of which those say how fast the link is that carry at least this.
const TELLING_BYTES: u64 = 4 << 20;
/// So many pages are watched at most.
const WATCHED_PAGES_MAX: u64 = 16 << 10;
/// Words of the dirty log that are cleared at a time: the guest's faults wait for each piece.
const CLEAR_WORDS: usize = 512;
/// When the watched pages are looked at, from the moment on at which they are clean.
const LOOKS_MS: [u64; 5] = [10, 20, 40, 80, 160];

/// What the target is told in the end.
const FAREWELL: &str = "it was a dry run";

/// Measure, and tell what would come of it.
pub fn rehearse(
    session: &mut Session<'_>,
    driver: &mut dyn SourceGuest,
    began: Instant,
) -> Result<Forecast, MigrationError> {
    let setup_us = micros(began.elapsed());
    session
        .watch
        .update(|progress| progress.phase = Phase::Copying);
    let mut standstill = Standstill::default();
    measure_target(&mut standstill, session)?;
    let empty_round_us = standstill.empty_round_us();
    let link = probe(session, empty_round_us)?;
    let dirtied = sample(session)?;
    measure_source(&mut standstill, driver);
    let began = Instant::now();
    session.tracker.dirty_bytes()?;
    standstill.look_took(micros(began.elapsed()));
    session.abort(FAREWELL);
    let fixed_us = standstill.fixed_us();
    let measured = Measured {
        setup_us,
        first_bytes: link.bytes,
        first_us: link.took_us,
        bytes_per_ms: link.bytes_per_ms,
        empty_round_us,
        fixed_us,
        dirtied,
    };
    let memory_bytes = memory_bytes(session);
    Ok(forecast(session.wish().goal, &measured, memory_bytes))
}

fn micros(time: Duration) -> u64 {
    time.as_micros().try_into().unwrap_or(u64::MAX)
}

/// Send a round, and wait until all of it has arrived; how long that took, in microseconds.
fn round(
    session: &mut Session<'_>,
    pages: &[SlotBitmap],
    touched: Option<&Touched>,
) -> Result<u64, MigrationError> {
    let began = Instant::now();
    session.begin_round();
    session.send_round(pages, touched, false)?;
    session.hear_round_done()?;
    session.watch.lifeline.check()?;
    Ok(micros(began.elapsed()))
}

/// What the first round over all memory would be.
struct Link {
    bytes: u64,
    took_us: u64,
    bytes_per_ms: u64,
}

fn probe(session: &mut Session<'_>, empty_round_us: u64) -> Result<Link, MigrationError> {
    let touched = Touched::open().ok();
    let mut all = session.tracker.collect()?;
    let portions = memory_bytes(session).div_ceil(PORTION_BYTES).max(1) as usize;
    let sent = |session: &Session<'_>| session.watch.sent_bytes.load(Ordering::Relaxed);
    let (began, before) = (Instant::now(), sent(session));
    let (mut took_us, mut done, mut bytes_per_ms) = (0, 0, 0);
    while done < portions && (done < PORTIONS_MIN || began.elapsed() < PROBE_TIME) {
        let already = sent(session);
        keep_portion(&mut all, done, portions);
        let round_us = round(session, &all, touched.as_ref())?.saturating_sub(empty_round_us);
        refill(&mut all);
        took_us += round_us;
        done += 1;
        let portion_bytes = sent(session) - already;
        if portion_bytes >= TELLING_BYTES {
            bytes_per_ms = bytes_per_ms.max(portion_bytes * 1000 / round_us.max(1));
        }
    }
    let bytes = sent(session) - before;
    let whole = |part: u64| part * portions as u64 / done as u64;
    Ok(Link {
        bytes: whole(bytes),
        took_us: whole(took_us) + empty_round_us,
        // Little memory says little, but the link carries at least this.
        bytes_per_ms: bytes_per_ms.max(bytes * 1000 / took_us.max(1)),
    })
}

/// Every `of`-th chunk of memory, from the `which`-th on.
fn keep_portion(all: &mut [SlotBitmap], which: usize, of: usize) {
    for bitmap in all {
        for (index, chunk) in bitmap.words.chunks_mut(CHUNK_WORDS).enumerate() {
            if index % of != which {
                chunk.fill(0);
            }
        }
    }
}

fn refill(all: &mut [SlotBitmap]) {
    for bitmap in all {
        bitmap.words.fill(u64::MAX);
    }
}

fn memory_bytes(session: &Session<'_>) -> u64 {
    session.memory.iter().map(GuestMemoryRegion::len).sum()
}

/// Watch some pages for a while, and conclude from them on all.
fn sample(session: &Session<'_>) -> Result<Vec<Dirtied>, MigrationError> {
    let tracker = &session.tracker;
    let mut watched = tracker.collect()?;
    let halvings = (memory_bytes(session) / PAGE_BYTES)
        .div_ceil(WATCHED_PAGES_MAX)
        .next_power_of_two()
        .trailing_zeros();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for bitmap in &mut watched {
        for word in &mut bitmap.words {
            *word = (0..halvings).fold(u64::MAX, |word, _| word & random.next());
        }
        for first in (0..bitmap.words.len()).step_by(CLEAR_WORDS) {
            let last = (first + CLEAR_WORDS).min(bitmap.words.len());
            tracker.clear(bitmap, first, &bitmap.words[first..last])?;
        }
    }
    let clean = Instant::now();
    let look = |after_ms: u64| {
        let wait = Duration::from_millis(after_ms).saturating_sub(clean.elapsed());
        session.watch.lifeline.sleep(wait)?;
        Ok(Dirtied {
            after_us: micros(clean.elapsed()),
            bytes: tracker.dirty_bytes_among(&watched)? << halvings,
        })
    };
    LOOKS_MS.into_iter().map(look).collect()
}

/// xorshift64: it only spreads the watched pages, so that no pattern of the guest's hides.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
