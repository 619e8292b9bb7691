//! Which of the dirty pages have to travel: not those that were never touched, and those
//! that are zero only by name.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::bitmap::{AtomicBitmap, BitmapSlice, RefSlice};
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::dirty::PAGE_BYTES;
use super::wire::{self, Run};
use crate::memory::{self, GuestMemory};

// Documentation/admin-guide/mm/pagemap.rst
const PAGEMAP_ENTRY_BYTES: usize = 8;
const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;

/// Tells which pages of this process exist.
pub struct Touched(File);

impl Touched {
    /// Look at this process.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/pagemap").map(Self)
    }

    /// For each page from `first` on: does it exist? What cannot be told counts as yes.
    pub fn pages(&self, first: *const u8, count: usize) -> Vec<bool> {
        let mut entries = vec![0u8; count * PAGEMAP_ENTRY_BYTES];
        let at = first as u64 / PAGE_BYTES * PAGEMAP_ENTRY_BYTES as u64;
        if self.0.read_exact_at(&mut entries, at).is_err() {
            return vec![true; count];
        }
        let exists = |entry: &[u8]| {
            let entry = u64::from_le_bytes(entry.try_into().unwrap_or([0xff; 8]));
            entry & PRESENT_OR_SWAPPED != 0
        };
        entries
            .chunks_exact(PAGEMAP_ENTRY_BYTES)
            .map(exists)
            .collect()
    }
}

/// A stretch of guest memory.
pub type Place<'a> = VolatileSlice<'a, RefSlice<'a, AtomicBitmap>>;

/// What of a stretch of memory has to travel.
#[derive(Debug, Default)]
pub struct Selection {
    /// Pages with content.
    pub pages: Vec<Run>,
    /// Pages that are zero.
    pub zeroes: Vec<Run>,
}

impl Selection {
    /// Do both fit one frame?
    pub fn has_room_for(&self, more: &Self) -> bool {
        let bytes = |runs: &[Run]| -> u64 { runs.iter().map(|run| u64::from(run.bytes)).sum() };
        let fit = |ours: &[Run], theirs: &[Run]| {
            ours.len() + theirs.len() <= wire::RUNS_MAX
                && bytes(ours) + bytes(theirs) <= wire::PAGES_BYTES_MAX
        };
        fit(&self.pages, &more.pages) && fit(&self.zeroes, &more.zeroes)
    }

    /// Take these too.
    pub fn append(&mut self, mut more: Self) {
        self.pages.append(&mut more.pages);
        self.zeroes.append(&mut more.zeroes);
    }
}

/// Sort the dirty pages of `words` (one bit each, from `address` on) by what they hold. With
/// `touched` (the first round: the target's memory is untouched too), pages that were never
/// touched are left out altogether.
pub fn select(
    memory: &GuestMemory,
    address: u64,
    words: &[u64],
    touched: Option<&Touched>,
) -> Selection {
    let pages = words.len() * 64;
    let exists = touched.and_then(|touched| {
        let start = memory.get_host_address(GuestAddress(address)).ok()?;
        Some(touched.pages(start, pages))
    });
    let mut selection = Selection::default();
    for page in 0..pages {
        if words[page / 64] >> (page % 64) & 1 == 0 {
            continue;
        }
        if exists.as_ref().is_some_and(|exists| !exists[page]) {
            continue;
        }
        let at = address + page as u64 * PAGE_BYTES;
        let Ok(slice) = memory.get_slice(GuestAddress(at), PAGE_BYTES as usize) else {
            continue;
        };
        let runs = if is_zero(&slice) {
            &mut selection.zeroes
        } else {
            &mut selection.pages
        };
        append(runs, at);
    }
    if touched.is_some() {
        // Zero in both places already.
        selection.zeroes.clear();
    }
    selection
}

fn append(runs: &mut Vec<Run>, address: u64) {
    match runs.last_mut() {
        Some(last) if last.address + u64::from(last.bytes) == address => {
            last.bytes += PAGE_BYTES as u32;
        }
        _ => runs.push(Run {
            address,
            bytes: PAGE_BYTES as u32,
        }),
    }
}

static ZEROES: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

/// Is the page zero? The C library compares with the widest registers that the processor has.
fn is_zero<B: BitmapSlice>(page: &VolatileSlice<'_, B>) -> bool {
    let guard = page.ptr_guard();
    // SAFETY: both ranges have PAGE_BYTES bytes. The guest may write meanwhile; whatever the
    // comparison says then, the page is logged as dirty and will be looked at again.
    unsafe { libc::memcmp(guard.as_ptr().cast(), ZEROES.as_ptr().cast(), ZEROES.len()) == 0 }
}

/// Where the pages of a frame go whose table of runs this is.
pub fn places<'a>(memory: &'a GuestMemory, table: &[u8]) -> io::Result<Vec<Place<'a>>> {
    let runs = wire::runs(table, PAGE_BYTES)?;
    let place = |run: &Run| memory.get_slice(GuestAddress(run.address), run.bytes as usize);
    let places = runs.iter().map(place);
    places.collect::<Result<_, _>>().map_err(io::Error::other)
}

/// Runs at least so long are made before they are filled; for shorter ones the call would cost
/// more than the faults that it saves.
const MADE_BYTES_MIN: usize = 64 << 10;

/// Let pages that do not exist yet come into being while what they will hold is still on its way:
/// a socket cannot take more in while the kernel makes a page for what it has.
pub fn make(places: &[Place<'_>]) {
    let long = places.iter().filter(|place| place.len() >= MADE_BYTES_MIN);
    long.for_each(memory::populate);
}

/// Zero the pages of a frame whose table of runs this is. Those that were never touched here cost
/// no memory.
pub fn clear(memory: &GuestMemory, table: &[u8]) -> io::Result<()> {
    for place in places(memory, table)? {
        for page in (0..place.len()).step_by(PAGE_BYTES as usize) {
            let page = place.subslice(page, PAGE_BYTES as usize);
            let page = page.map_err(io::Error::other)?;
            if !is_zero(&page) {
                page.copy_from(&ZEROES[..]);
            }
        }
    }
    Ok(())
}

/// A hash of all guest memory in which zero and untouched pages count alike. `go_on` is asked
/// between pieces.
pub fn hash<E>(memory: &GuestMemory, go_on: impl Fn() -> Result<(), E>) -> Result<u64, E> {
    use vm_memory::{Address, GuestMemoryRegion};
    let touched = Touched::open().ok();
    let mut sum = 0u64;
    for region in memory.iter() {
        let base = region.start_addr().raw_value();
        let words = [u64::MAX; 8];
        let step = words.len() as u64 * 64 * PAGE_BYTES;
        for address in (base..base + region.len()).step_by(step as usize) {
            go_on()?;
            for run in select(memory, address, &words, touched.as_ref()).pages {
                for page in (0..u64::from(run.bytes)).step_by(PAGE_BYTES as usize) {
                    let at = GuestAddress(run.address + page);
                    if let Ok(slice) = memory.get_slice(at, PAGE_BYTES as usize) {
                        sum = sum.wrapping_add(hash_page(at.0, &slice));
                    }
                }
            }
        }
    }
    Ok(sum)
}

/// Depends on the page's place, so that swapped pages do not cancel out.
fn hash_page<B: BitmapSlice>(address: u64, page: &VolatileSlice<'_, B>) -> u64 {
    let mut copy = [0u8; PAGE_BYTES as usize];
    page.copy_to(&mut copy[..]);
    let (low, high) = copy.split_at(copy.len() / 2);
    let content = u64::from(crc32c::crc32c(low)) << 32 | u64::from(crc32c::crc32c(high));
    (content ^ address.rotate_left(20)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn untouched_and_zero_pages_do_not_travel_first_and_runs_are_whole() {
        let memory = memory::map(16, false).unwrap();
        for page in [3u64, 4, 9] {
            memory
                .write_obj(7u64, GuestAddress(page * PAGE_BYTES))
                .unwrap();
        }
        memory
            .write_obj(0u64, GuestAddress(5 * PAGE_BYTES))
            .unwrap();
        let expected = [
            Run {
                address: 3 * PAGE_BYTES,
                bytes: 2 * PAGE_BYTES as u32,
            },
            Run {
                address: 9 * PAGE_BYTES,
                bytes: PAGE_BYTES as u32,
            },
        ];
        let touched = Touched::open().unwrap();
        let first = select(&memory, 0, &[u64::MAX], Some(&touched));
        assert_eq!((&first.pages[..], first.zeroes.len()), (&expected[..], 0));
        let later = select(&memory, 0, &[0b10_0000], None);
        assert_eq!((later.pages.len(), later.zeroes.len()), (0, 1));
    }

    #[test]
    fn the_hash_sees_content_and_place_but_not_whether_a_zero_was_written() {
        let hash_with = |writes: &[(u64, u64)]| {
            let memory = memory::map(16, false).unwrap();
            for (page, value) in writes {
                memory
                    .write_obj(*value, GuestAddress(page * PAGE_BYTES))
                    .unwrap();
            }
            hash(&memory, || Ok::<_, ()>(())).unwrap()
        };
        assert_eq!(hash_with(&[(1, 5)]), hash_with(&[(1, 5), (7, 0)]));
        assert_ne!(hash_with(&[(1, 5)]), hash_with(&[(2, 5)]));
        assert_ne!(hash_with(&[(1, 5), (2, 6)]), hash_with(&[(1, 6), (2, 5)]));
    }
}
