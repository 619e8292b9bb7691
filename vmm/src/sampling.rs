//! How the guest uses its memory, from small random samples of its pages.
//!
//! Whoever asks for the counters drives it: a VMM that nobody watches samples nothing.

pub mod accesses;
pub mod writes;

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::GuestMemory;
use crate::migration::pages::Touched;

const PAGE_BYTES: u64 = 4096;
/// So many pages are drawn at most to find those that exist.
const DRAWS_MAX: u64 = 4096;

/// What this thread has had of a processor: that is what sampling costs. What it waits for one
/// costs nobody anything.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Pages that exist.
struct Drawn {
    pages: Vec<GuestAddress>,
    /// How many were drawn to find them.
    draws: u64,
}

/// Draw so many pages that exist; `drawn` is how many ever were.
fn draw(memory: &GuestMemory, drawn: &mut u64, wanted: usize) -> Drawn {
    let touched = Touched::open().ok();
    let all = pages(memory);
    let (mut found, mut draws) = (Vec::with_capacity(wanted), 0);
    while found.len() < wanted && draws < DRAWS_MAX && all > 0 {
        draws += 1;
        *drawn += 1;
        let Some(at) = address(memory, spread(*drawn) % all) else {
            continue;
        };
        let exists = |touched: &Touched| {
            let place = memory.get_host_address(at);
            place.is_ok_and(|place| touched.pages(place, 1) == [true])
        };
        if touched.as_ref().is_none_or(exists) {
            found.push(at);
        }
    }
    Drawn {
        pages: found,
        draws,
    }
}

fn pages(memory: &GuestMemory) -> u64 {
    memory.iter().map(|region| region.len() / PAGE_BYTES).sum()
}

/// The `page`-th page of memory.
fn address(memory: &GuestMemory, mut page: u64) -> Option<GuestAddress> {
    for region in memory.iter() {
        let pages = region.len() / PAGE_BYTES;
        if page < pages {
            return Some(GuestAddress(region.start_addr().0 + page * PAGE_BYTES));
        }
        page -= pages;
    }
    None
}

/// The `n`-th of numbers that look random (the finisher of `MurmurHash3`), so that no pattern
/// of the guest's hides from the sample.
fn spread(n: u64) -> u64 {
    let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}
