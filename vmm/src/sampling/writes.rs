//! How much of its memory the guest writes to, and how fast.
//!
//! Some pages are read and kept as checksums; one that reads otherwise later was written
//! meanwhile. The guest does not notice: nothing is write-protected, so no fault is taken and
//! huge pages stay huge. What is written over with the same bytes counts as not written.

use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm_core::control::{LOOKS, MemorySample};
use vmm_core::forecast::Dirtied;

use super::{PAGE_BYTES, draw, pages, processor_time};
use crate::memory::GuestMemory;

/// So many pages are watched: what they say is off by about two per cent of the memory.
const WATCHED_PAGES: usize = 512;
/// When they are looked at, from the moment on at which they were drawn.
const LOOKS_AFTER: [Duration; LOOKS] = [
    Duration::from_millis(400),
    Duration::from_secs(2),
    Duration::from_secs(10),
];

/// Draws pages and looks at them, again and again.
#[derive(Debug, Default)]
pub struct WriteSampler {
    watch: Option<Watch>,
    last: Option<MemorySample>,
    cost: Duration,
    drawn: u64,
}

#[derive(Debug)]
struct Watch {
    began: Instant,
    pages: Vec<(GuestAddress, Option<u32>)>,
    touched_bytes: u64,
    dirtied: [Dirtied; LOOKS],
    looks: usize,
}

impl WriteSampler {
    /// Does what is due at `now`; answers what the last complete sample said.
    pub fn step(&mut self, memory: &GuestMemory, now: Instant) -> Option<MemorySample> {
        let due = self.watch.as_ref().is_none_or(|watch| watch.is_due(now));
        if due {
            let began = processor_time();
            if let Some(watch) = &mut self.watch {
                watch.look(memory, now);
            }
            if let Some(done) = self.watch.take_if(|watch| watch.looks == LOOKS) {
                self.last = Some(done.conclude());
            }
            if self.watch.is_none() {
                self.watch = Some(self.draw(memory, now));
            }
            self.cost += processor_time().saturating_sub(began);
        }
        self.last.map(|last| MemorySample {
            cost_us: self.cost.as_micros() as u64,
            ..last
        })
    }

    /// Is the page at `at` being watched? Then it will be read before long.
    pub fn watches(&self, at: GuestAddress) -> bool {
        let watched = |watch: &Watch| watch.pages.iter().any(|(page, _)| *page == at);
        self.watch.as_ref().is_some_and(watched)
    }

    fn draw(&mut self, memory: &GuestMemory, now: Instant) -> Watch {
        let drawn = draw(memory, &mut self.drawn, WATCHED_PAGES);
        let pages_touched = pages(memory) * drawn.pages.len() as u64 / drawn.draws.max(1);
        let marked = drawn.pages.into_iter();
        Watch {
            began: now,
            touched_bytes: pages_touched * PAGE_BYTES,
            pages: marked.map(|at| (at, checksum(memory, at))).collect(),
            dirtied: [Dirtied::default(); LOOKS],
            looks: 0,
        }
    }
}

impl Watch {
    fn is_due(&self, now: Instant) -> bool {
        let after = LOOKS_AFTER.get(self.looks);
        after.is_none_or(|after| now.saturating_duration_since(self.began) >= *after)
    }

    fn look(&mut self, memory: &GuestMemory, now: Instant) {
        let changed = |(at, was): &&(GuestAddress, Option<u32>)| checksum(memory, *at) != *was;
        let changed = self.pages.iter().filter(changed).count() as u64;
        if let Some(look) = self.dirtied.get_mut(self.looks) {
            *look = Dirtied {
                after_us: now.saturating_duration_since(self.began).as_micros() as u64,
                bytes: self.touched_bytes / (self.pages.len() as u64).max(1) * changed,
            };
        }
        self.looks += 1;
    }

    fn conclude(&self) -> MemorySample {
        MemorySample {
            watched_pages: self.pages.len() as u64,
            touched_mib: self.touched_bytes >> 20,
            dirtied: self.dirtied,
            accessed: None,
            cost_us: 0,
        }
    }
}

fn checksum(memory: &GuestMemory, at: GuestAddress) -> Option<u32> {
    let mut page = [0; PAGE_BYTES as usize];
    memory.read_slice(&mut page, at).ok()?;
    Some(crc32c::crc32c(&page))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::map;

    const MIB: u64 = 1 << 20;

    fn write(memory: &GuestMemory, from_mib: u64, to_mib: u64, value: u64) {
        for at in (from_mib * MIB..to_mib * MIB).step_by(PAGE_BYTES as usize) {
            memory.write_obj(value, GuestAddress(at + 8)).unwrap();
        }
    }

    #[test]
    fn what_is_touched_and_what_is_written_are_found() {
        let memory = map(64, false).unwrap();
        write(&memory, 0, 32, 1);
        let mut sampler = WriteSampler::default();
        let start = Instant::now();
        assert_eq!(sampler.step(&memory, start), None);
        write(&memory, 0, 8, 2);
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(sampler.step(&memory, at(100)), None, "nothing is due");
        assert_eq!(sampler.step(&memory, at(500)), None);
        write(&memory, 8, 16, 2);
        assert_eq!(sampler.step(&memory, at(2100)), None);
        let told = sampler.step(&memory, at(10_000)).expect("three looks");
        assert_eq!(told.watched_pages, WATCHED_PAGES as u64);
        assert!(told.touched_mib.abs_diff(32) <= 5, "{told:?}");
        let mib = told.dirtied.map(|look| look.bytes >> 20);
        assert!(mib[0].abs_diff(8) <= 3, "{told:?}");
        assert!(
            mib[1].abs_diff(16) <= 4 && mib[2].abs_diff(16) <= 4,
            "{told:?}"
        );
        assert_eq!(
            told.dirtied.map(|look| look.after_us / 1000),
            [500, 2100, 10_000]
        );
        println!(
            "a sample of {WATCHED_PAGES} pages costs {} us",
            told.cost_us
        );
    }

    #[test]
    fn untouched_memory_says_nothing_and_stays_untouched() {
        let memory = map(64, false).unwrap();
        let mut sampler = WriteSampler::default();
        let start = Instant::now();
        for ms in [0, 400, 2000, 10_000] {
            sampler.step(&memory, start + Duration::from_millis(ms));
        }
        let told = sampler.last.expect("a sample");
        assert_eq!((told.watched_pages, told.touched_mib), (0, 0));
        assert_eq!(told.dirtied[2].bytes, 0);
    }
}
