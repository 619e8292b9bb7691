//! One round of pre-copy: the dirty pages go out over all data connections.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::MigrationError;
use super::dirty::{PAGE_BYTES, SlotBitmap, Tracker, bytes_marked};
use super::fault::{self, Moment};
use super::lifeline::Lifeline;
use super::pages::{self, Touched};
use super::stream::Stream;
use super::watch::Watch;
use super::wire::{self, Kind, Run};
use crate::kvm::PAGES_PER_WORD;
use crate::memory::GuestMemory;

/// Memory is handed to the connections in pieces of so many words of the dirty bitmap.
pub const CHUNK_WORDS: usize = 8;
/// So few bytes are on their way sooner than more threads would be at work.
const ALONE_BYTES_MAX: u64 = 4 << 20;

/// What a round is made of.
pub struct Sending<'a> {
    /// Its number, from 1.
    pub number: u32,
    /// The pages, slot by slot.
    pub dirty: &'a [SlotBitmap],
    /// In the first round: leave out what was never touched.
    pub touched: Option<&'a Touched>,
    /// The guest runs: its writes from now on are for the next round.
    pub goes_on: bool,
    /// The log of its writes.
    pub tracker: &'a Tracker,
    /// Its memory.
    pub memory: &'a GuestMemory,
    /// Who counts, and may cancel.
    pub watch: &'a Watch,
    /// Bytes per second of all connections together; 0: as fast as it goes.
    pub bandwidth_max: u64,
    /// The other side, for messages.
    pub to: &'a str,
}

/// A slot and the first of the words of its bitmap.
type Chunk = (usize, usize);

impl Sending<'_> {
    /// Send all of it, and its end over every connection. When one of them fails, none goes on.
    pub fn send(&self, streams: &mut [Stream]) -> Result<(), MigrationError> {
        let chunks = self.chunks();
        let next = AtomicU64::new(0);
        let cap = Cap::new(self.bandwidth_max, &self.watch.lifeline);
        let first_failure = Mutex::new(None);
        let failed = |error: MigrationError| {
            let lock = first_failure.lock();
            lock.unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(error);
            self.watch.lifeline.break_off();
        };
        let work = |stream: &mut Stream| {
            let done = self.send_chunks(stream, &chunks, &next, &cap);
            done.unwrap_or_else(failed);
        };
        if self.dirty_bytes() <= ALONE_BYTES_MAX {
            // The first connection leaves nothing for the others but to say so.
            streams.iter_mut().for_each(work);
        } else {
            thread::scope(|scope| {
                let mut streams = streams.iter_mut();
                // This thread is one of the workers; with a single connection it is the only one.
                let own = streams.next();
                let others: Vec<_> = streams.map(|stream| scope.spawn(|| work(stream))).collect();
                own.map(work);
                for other in others {
                    let died = || MigrationError::Here("a sending thread has died".to_owned());
                    other.join().unwrap_or_else(|_| failed(died()));
                }
            });
        }
        let failure = first_failure.into_inner();
        failure
            .unwrap_or_else(PoisonError::into_inner)
            .map_or(Ok(()), Err)
    }

    /// Send all of it over the control connection, where its end needs not be told.
    pub fn send_in_line(&self, control: &mut Stream) -> Result<(), MigrationError> {
        let lost = || MigrationError::connection("send memory to", self.to);
        let send = |control: &mut Stream, selection: &pages::Selection| {
            send_selection(control, self.memory, self.number, selection).map_err(lost())
        };
        let (mut sent, mut together) = (0, pages::Selection::default());
        for chunk in self.chunks() {
            let selection = self.select(chunk);
            // As few frames as there can be: each wakes the target.
            if !together.has_room_for(&selection) {
                sent += send(control, &together)?;
                together = pages::Selection::default();
            }
            together.append(selection);
        }
        sent += send(control, &together)?;
        self.watch.count(sent, self.dirty_bytes() - sent);
        Ok(())
    }

    fn chunks(&self) -> Vec<Chunk> {
        let all = self.dirty.iter().enumerate().flat_map(|(slot, bitmap)| {
            let words = (0..bitmap.words.len()).step_by(CHUNK_WORDS);
            words.map(move |word| (slot, word))
        });
        all.filter(|chunk| self.words(*chunk).iter().any(|word| *word != 0))
            .collect()
    }

    fn words(&self, (slot, word): Chunk) -> &[u64] {
        let words = &self.dirty[slot].words;
        &words[word..(word + CHUNK_WORDS).min(words.len())]
    }

    fn dirty_bytes(&self) -> u64 {
        self.dirty.iter().map(SlotBitmap::dirty_bytes).sum()
    }

    /// Take chunks until none is left.
    fn send_chunks(
        &self,
        stream: &mut Stream,
        chunks: &[Chunk],
        next: &AtomicU64,
        cap: &Cap<'_>,
    ) -> Result<(), MigrationError> {
        let lost = || MigrationError::connection("send memory to", self.to);
        while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            self.watch.lifeline.check()?;
            let sent = self.send_chunk(stream, *chunk, lost())?;
            cap.wait(sent)?;
        }
        let end = wire::control(Kind::End, self.number, &[]);
        let sent = fault::pass(Moment::Before, Kind::End, self.number)
            .and_then(|()| stream.send_pages::<()>(&end, &[]));
        sent.map_err(lost())
    }

    fn select(&self, chunk: Chunk) -> pages::Selection {
        let base = self.dirty[chunk.0].base;
        let address = base + chunk.1 as u64 * PAGES_PER_WORD * PAGE_BYTES;
        pages::select(self.memory, address, self.words(chunk), self.touched)
    }

    fn send_chunk(
        &self,
        stream: &mut Stream,
        chunk: Chunk,
        lost: impl FnOnce(std::io::Error) -> MigrationError,
    ) -> Result<u64, MigrationError> {
        let bitmap = &self.dirty[chunk.0];
        let words = self.words(chunk);
        if self.goes_on {
            // Just before it is read, so that no write between goes unnoticed.
            self.tracker.clear(bitmap, chunk.1, words)?;
        }
        let selection = self.select(chunk);
        let sent = send_selection(stream, self.memory, self.number, &selection).map_err(lost)?;
        self.watch.count(sent, bytes_marked(words) - sent);
        Ok(sent)
    }
}

/// Send what was selected of one chunk; returns the bytes of pages sent.
fn send_selection(
    stream: &mut Stream,
    memory: &GuestMemory,
    round: u32,
    selection: &pages::Selection,
) -> std::io::Result<u64> {
    if !selection.zeroes.is_empty() {
        let head = wire::page_table(Kind::Zero, round, &selection.zeroes);
        fault::pass(Moment::Before, Kind::Zero, round)?;
        stream.send_pages::<()>(&head, &[])?;
        fault::pass(Moment::After, Kind::Zero, round)?;
    }
    if selection.pages.is_empty() {
        return Ok(0);
    }
    let slices = selection.pages.iter().map(|run: &Run| {
        memory
            .get_slice(GuestAddress(run.address), run.bytes as usize)
            .map_err(std::io::Error::other)
    });
    let slices: Vec<_> = slices.collect::<Result<_, _>>()?;
    let head = wire::page_table(Kind::Pages, round, &selection.pages);
    fault::pass(Moment::Before, Kind::Pages, round)?;
    stream.send_pages(&head, &slices)?;
    fault::pass(Moment::After, Kind::Pages, round)?;
    Ok(selection.pages.iter().map(|run| u64::from(run.bytes)).sum())
}

/// Holds senders back to a rate.
struct Cap<'a> {
    lifeline: &'a Lifeline,
    bytes_per_s: u64,
    began: Instant,
    sent: AtomicU64,
}

impl<'a> Cap<'a> {
    fn new(bytes_per_s: u64, lifeline: &'a Lifeline) -> Self {
        Self {
            lifeline,
            bytes_per_s,
            began: Instant::now(),
            sent: AtomicU64::new(0),
        }
    }

    fn wait(&self, bytes: u64) -> Result<(), MigrationError> {
        if self.bytes_per_s == 0 {
            return Ok(());
        }
        let sent = self.sent.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let due = Duration::from_secs_f64(sent as f64 / self.bytes_per_s as f64);
        self.lifeline
            .sleep(due.saturating_sub(self.began.elapsed()))
    }
}
