use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::*;
use crate::memory::{self, GuestMemory};

/// Both tests fill the lot: one after the other.
static ALONE: Mutex<()> = Mutex::new(());
const LONG_ENOUGH: Duration = Duration::from_secs(2);

fn alone() -> Option<(MutexGuard<'static, ()>, &'static Lot)> {
    match lot() {
        Ok(lot) => Some((ALONE.lock().unwrap_or_else(PoisonError::into_inner), lot)),
        Err(why) => {
            ground::skip(why);
            None
        }
    }
}

fn home(memory: &GuestMemory, page: u64) -> usize {
    let address = GuestAddress(page * PAGE as u64);
    memory.get_host_address(address).unwrap() as usize
}

fn set_aside(lot: &Lot, memory: &GuestMemory, page: u64) {
    // SAFETY: guest memory, which outlives the absence in each of these tests.
    unsafe { lot.set_aside(home(memory, page)) }.unwrap();
}

#[test]
fn who_misses_a_page_gets_it_and_what_is_missed_is_known() {
    let Some((_alone, lot)) = alone() else { return };
    let memory = memory::map(16, false).unwrap();
    let at = |page: u64| GuestAddress(page * PAGE as u64);
    for page in 0..512 {
        memory.write_obj(page + 7, at(page)).unwrap();
    }
    let all = home(&memory, 0)..home(&memory, 4095);
    assert_eq!(trial::mappings(&all), 1);
    (10..20).for_each(|page| set_aside(lot, &memory, page));
    // SAFETY: it is away already, so nothing happens.
    unsafe { lot.set_aside(home(&memory, 10)) }.unwrap_err();
    // Read, written, by the kernel read into and written from.
    assert_eq!(memory.read_obj::<u64>(at(10)).unwrap(), 17);
    memory.write_obj(1u64, at(11)).unwrap();
    let mut zeroes = File::open("/dev/zero").unwrap();
    memory
        .read_exact_volatile_from(at(12), &mut zeroes, 8)
        .unwrap();
    let (mut ours, theirs) = io::pipe().unwrap();
    let (mut theirs, mut word) = (File::from(OwnedFd::from(theirs)), [0; 8]);
    memory
        .write_all_volatile_to(at(13), &mut theirs, 8)
        .unwrap();
    ours.read_exact(&mut word).unwrap();
    assert_eq!(u64::from_le_bytes(word), 20);
    let untouched: Vec<u64> = (10..20)
        .filter(|page| lot.bring_home(home(&memory, *page)))
        .collect();
    assert_eq!(untouched, [14, 15, 16, 17, 18, 19]);
    for page in 14..512 {
        assert_eq!(memory.read_obj::<u64>(at(page)).unwrap(), page + 7);
    }
    assert_eq!(memory.read_obj::<u64>(at(11)).unwrap(), 1);
    assert_eq!(memory.read_obj::<u64>(at(12)).unwrap(), 0);
    assert_eq!(trial::mappings(&all), 1, "no scars");
}

/// Every thread counts in a word of its own in each page, and knows what it must find there.
#[test]
fn no_write_is_ever_lost() {
    const PAGES: u64 = 2048;
    const THREADS: u64 = 3;
    let Some((_alone, lot)) = alone() else { return };
    let memory = memory::map(16, false).unwrap();
    for page in 0..PAGES {
        memory
            .write_obj(0u64, GuestAddress(page * PAGE as u64))
            .unwrap();
    }
    let (over, counted) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut sets, mut missed) = (0u64, 0u64);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (over, counted, memory) = (&over, &counted, &memory);
            scope.spawn(move || {
                let mut expected = vec![0u64; PAGES as usize];
                let mut random = thread + 1;
                while !over.load(Ordering::Relaxed) {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let page = (random >> 33) % PAGES;
                    let at = GuestAddress(page * PAGE as u64 + thread * 8);
                    let found: u64 = memory.read_obj(at).unwrap();
                    assert_eq!(found, expected[page as usize], "page {page}");
                    expected[page as usize] += 1;
                    memory.write_obj(found + 1, at).unwrap();
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let (began, mut next) = (Instant::now(), 0);
        while began.elapsed() < LONG_ENOUGH {
            let pages: Vec<u64> = (0..PLACES as u64)
                .map(|n| (next + n * 31) % PAGES)
                .collect();
            next += 7;
            for page in &pages {
                set_aside(lot, &memory, *page);
            }
            sets += 1;
            let home = pages
                .iter()
                .filter(|page| lot.bring_home(home(&memory, **page)));
            missed += (PLACES - home.count()) as u64;
        }
        over.store(true, Ordering::Relaxed);
    });
    println!("{sets} times {PLACES} pages, {missed} of them missed; {counted:?} counted");
    assert!(missed > 0);
}
