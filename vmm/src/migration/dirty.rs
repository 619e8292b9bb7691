//! Which pages were written since they were sent: what KVM logs of the guest's processors,
//! and what the memory's own bitmap knows of our devices.

use std::sync::Arc;

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};
use vmm_core::history::History;

use crate::kvm::{DirtyLog, KvmError, PAGES_PER_WORD};
use crate::memory::GuestMemory;

/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;

/// Watches one machine's memory for as long as it lives.
pub struct Tracker {
    log: DirtyLog,
    memory: Arc<GuestMemory>,
}

/// Dirty pages of one memory slot, a bit each.
pub struct SlotBitmap {
    slot: usize,
    /// Guest-physical address of its first page.
    pub base: u64,
    /// Bits; page 0 is the lowest of the first word.
    pub words: Vec<u64>,
    pages: u64,
}

impl SlotBitmap {
    /// How much it marks.
    pub fn dirty_bytes(&self) -> u64 {
        bytes_marked(&self.words)
    }
}

/// The same pages in the order in which they are best sent: first those that are quiet, then those
/// that are dirtied all the time.
pub fn hot_last(dirty: Vec<SlotBitmap>, history: &mut [History]) -> Vec<SlotBitmap> {
    let mut hot_ones = Vec::new();
    let mut all = dirty;
    for (bitmap, history) in all.iter_mut().zip(history) {
        let hot = history.hot(&bitmap.words);
        if hot.iter().all(|word| *word == 0) {
            continue;
        }
        for (word, hot) in bitmap.words.iter_mut().zip(&hot) {
            *word &= !hot;
        }
        hot_ones.push(SlotBitmap {
            words: hot,
            ..*bitmap
        });
    }
    all.append(&mut hot_ones);
    all
}

/// How much the bits in `words` stand for.
pub fn bytes_marked(words: &[u64]) -> u64 {
    let pages: u64 = words.iter().map(|word| u64::from(word.count_ones())).sum();
    pages * PAGE_BYTES
}

impl Tracker {
    /// Begin; every page counts as dirty.
    pub fn start(log: DirtyLog, memory: Arc<GuestMemory>) -> Result<Self, KvmError> {
        for region in memory.iter() {
            device_writes(region).reset();
        }
        if !log.start()? {
            return Err(KvmError::Lacks("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"));
        }
        Ok(Self { log, memory })
    }

    /// What is dirty. Our devices' writes are forgotten by being told; the guest's stay
    /// until [`Tracker::clear`].
    pub fn collect(&self) -> Result<Vec<SlotBitmap>, KvmError> {
        let slots = self.memory.iter().enumerate().map(|(slot, region)| {
            let words = self.fetch_and(slot, device_writes(region).get_and_reset())?;
            Ok(SlotBitmap {
                slot,
                base: region.start_addr().raw_value(),
                words,
                pages: region.len() / PAGE_BYTES,
            })
        });
        slots.collect()
    }

    /// How many bytes the guest and our devices have dirtied; nothing is forgotten by telling.
    pub fn dirty_bytes(&self) -> Result<u64, KvmError> {
        let slots = self.memory.iter().enumerate();
        slots
            .map(|(slot, region)| Ok(bytes_marked(&self.look(slot, region)?)))
            .sum()
    }

    /// How many bytes of the pages marked in `watched` were dirtied.
    pub fn dirty_bytes_among(&self, watched: &[SlotBitmap]) -> Result<u64, KvmError> {
        let slots = watched
            .iter()
            .zip(self.memory.iter())
            .map(|(bitmap, region)| {
                let mut words = self.look(bitmap.slot, region)?;
                for (word, watched) in words.iter_mut().zip(&bitmap.words) {
                    *word &= watched;
                }
                Ok(bytes_marked(&words))
            });
        slots.sum()
    }

    /// Write-protect the pages that `words` marks, from the `first_word`-th of the bitmap on:
    /// writing to them is logged anew.
    pub fn clear(
        &self,
        bitmap: &SlotBitmap,
        first_word: usize,
        words: &[u64],
    ) -> Result<(), KvmError> {
        let first_page = first_word as u64 * PAGES_PER_WORD;
        let pages = (words.len() as u64 * PAGES_PER_WORD).min(bitmap.pages - first_page);
        self.log.clear(bitmap.slot, first_page, pages as u32, words)
    }

    /// What is dirty, by whomever; nothing is forgotten.
    fn look(
        &self,
        slot: usize,
        region: &GuestRegionMmap<AtomicBitmap>,
    ) -> Result<Vec<u64>, KvmError> {
        // What a copy forgets stays.
        self.fetch_and(slot, device_writes(region).clone().get_and_reset())
    }

    /// What KVM has logged, and `ours`.
    fn fetch_and(&self, slot: usize, ours: Vec<u64>) -> Result<Vec<u64>, KvmError> {
        let mut words = self.fetch(slot)?;
        for (word, ours) in words.iter_mut().zip(ours) {
            *word |= ours;
        }
        Ok(words)
    }

    fn fetch(&self, slot: usize) -> Result<Vec<u64>, KvmError> {
        let mut words = vec![0; self.log.words(slot)];
        self.log.fetch(slot, &mut words)?;
        Ok(words)
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        // The guest goes on at full speed, or is about to end; nothing depends on the answer.
        let _ = self.log.stop();
    }
}

/// The pages that our devices wrote (not the trait's view of it, which cannot be reset).
fn device_writes(region: &GuestRegionMmap<AtomicBitmap>) -> &AtomicBitmap {
    MmapRegion::bitmap(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(slot: usize, words: &[u64]) -> SlotBitmap {
        SlotBitmap {
            slot,
            base: slot as u64 * PAGE_BYTES,
            words: words.to_vec(),
            pages: words.len() as u64 * PAGES_PER_WORD,
        }
    }

    #[test]
    fn hot_pages_come_last_and_none_is_lost() {
        let mut history = [History::default(), History::default()];
        let order = |dirty: &[SlotBitmap]| -> Vec<_> {
            let one = |bitmap: &SlotBitmap| (bitmap.slot, bitmap.words[0]);
            dirty.iter().map(one).collect()
        };
        let first = hot_last(vec![slot(0, &[0b011]), slot(1, &[0b100])], &mut history);
        assert_eq!(order(&first), [(0, 0b011), (1, 0b100)]);
        let second = hot_last(vec![slot(0, &[0b110]), slot(1, &[0b011])], &mut history);
        assert_eq!(order(&second), [(0, 0b100), (1, 0b011), (0, 0b010)]);
    }
}
