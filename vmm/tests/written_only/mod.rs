//! A guest of which only what exists and what is written can be told: no page is taken away from it.

use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm::guest::Guest;
use vmm_core::control::MemorySample;

const MIB: u64 = 1 << 20;
/// The guest.
pub const MEMORY_MIB: u64 = 192;
pub const SETTINGS: &str = "fill_mib=48 sweep_mib_s=max";
/// Memory that somebody touches besides the guest, and how much of it again and again.
const TOUCHED: std::ops::Range<u64> = 80 * MIB..176 * MIB;
const WRITTEN_BYTES: u64 = 48 * MIB;
/// Longer than whatever a sampler waits for.
const STEP: Duration = Duration::from_secs(11);
/// Enough for two samples of what is written, and more than that of what is accessed.
const LOOKS: u64 = 12;

fn touch(guest: &Guest, bytes: u64, value: u64) {
    for at in TOUCHED.step_by(4096).take((bytes / 4096) as usize) {
        guest.memory().write_obj(value, GuestAddress(at)).unwrap();
    }
}

/// Samples as an agent would that asks every eleven seconds, and says what came of it.
fn sample(guest: &Guest) -> MemorySample {
    touch(guest, TOUCHED.end - TOUCHED.start, 1);
    let began = Instant::now();
    let mut told = None;
    for look in 0..LOOKS {
        told = guest.sample_memory(began + STEP * look as u32);
        touch(guest, WRITTEN_BYTES, look + 2);
    }
    told.expect("a sample")
}

/// Nothing is made up about what is read.
pub fn only_what_is_written_is_told(guest: &Guest, what: &str) {
    let told = sample(guest);
    println!("{what}: {told:?}");
    assert_eq!(told.accessed, None, "{told:?}");
    let all_mib = 48 + (TOUCHED.end - TOUCHED.start) / MIB;
    assert!(told.touched_mib.abs_diff(all_mib) < 25, "{told:?}");
    let written_mib = WRITTEN_BYTES / MIB;
    assert!(told.written_mib().abs_diff(written_mib) < 25, "{told:?}");
    assert_eq!(told.active_mib(), told.written_mib());
}
