//! How much of its memory the guest reads or writes.
//!
//! Some pages are set aside for a while ([`crate::aside`]); those that are missed are in use.
//! Each costs whoever misses it a wait of some 100 us, and the huge page that it is part of is
//! mapped in small ones until it is home, so they are few.
//!
//! ```text
//!            set_aside                 conclude, after PERIOD
//!   at home ───────────► some are away ──────────────────────► at home: counted
//!      ▲                      │  bar, call_home
//!      └──────────────────────┘  not counted
//! ```
//!
//! While it is barred none is away: a migration tells pages that were never touched by their
//! absence.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};
use vmm_core::control::Accessed;

use super::{PAGE_BYTES, draw, processor_time};
use crate::aside::{self, Lot};
use crate::memory::{self, GuestMemory};
use crate::migration::pages::Touched;

/// So many pages are set aside at a time ...
const TAKEN_PAGES: usize = 32;
/// ... for so long.
pub const PERIOD: Duration = Duration::from_secs(10);
/// So many periods are counted together, which makes the error some four per cent of memory.
const PERIODS: usize = 8;

/// Sets pages aside, again and again.
#[derive(Debug)]
pub struct AccessSampler {
    memory: Arc<GuestMemory>,
    /// Pages of hugetlbfs cannot be set aside.
    able: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// So many want that no page is away.
    bars: usize,
    away: Option<Away>,
    past: VecDeque<Accessed>,
    drawn: u64,
    cost: Duration,
}

#[derive(Debug)]
struct Away {
    began: Instant,
    lot: &'static Lot,
    homes: Vec<usize>,
}

/// No page is away while this lives.
#[derive(Debug)]
pub struct Bar<'a>(&'a AccessSampler);

impl AccessSampler {
    /// For a guest with this memory, all of it in huge pages of hugetlbfs or not.
    pub fn new(memory: Arc<GuestMemory>, hugepages: bool) -> Self {
        Self {
            memory,
            able: !hugepages,
            state: Mutex::default(),
        }
    }

    /// What the latest periods have said together.
    pub fn told(&self) -> Option<Accessed> {
        let state = self.lock();
        let past = state.past.iter();
        let told = past.copied().reduce(|sum, one| Accessed {
            taken_pages: sum.taken_pages + one.taken_pages,
            missed_pages: sum.missed_pages + one.missed_pages,
            within_us: sum.within_us.max(one.within_us),
        });
        told.filter(|told| told.taken_pages > 0)
    }

    /// Processor time that it has taken.
    pub fn cost(&self) -> Duration {
        self.lock().cost
    }

    /// End the period whose time is over; says whether another may begin.
    pub fn conclude(&self, now: Instant) -> bool {
        let able = self.able && aside::lot().is_ok();
        let mut state = self.lock();
        let over = |away: &mut Away| now.saturating_duration_since(away.began) >= PERIOD;
        let Some(away) = state.away.take_if(over) else {
            return able && state.away.is_none() && state.bars == 0;
        };
        let began = processor_time();
        let missed = away.bring_home();
        state.past.push_back(Accessed {
            taken_pages: away.homes.len() as u64,
            missed_pages: missed as u64,
            within_us: now.saturating_duration_since(away.began).as_micros() as u64,
        });
        if state.past.len() > PERIODS {
            state.past.pop_front();
        }
        drop(state);
        self.mend(&away.homes);
        self.lock().cost += processor_time().saturating_sub(began);
        false
    }

    /// Draw pages for a period, none of those to `avoid`.
    pub fn draw(&self, avoid: impl Fn(GuestAddress) -> bool) -> Vec<GuestAddress> {
        let began = processor_time();
        let mut drawn = self.lock().drawn;
        let mut pages = draw(&self.memory, &mut drawn, TAKEN_PAGES).pages;
        let mut state = self.lock();
        state.drawn = drawn;
        state.cost += processor_time().saturating_sub(began);
        drop(state);
        pages.retain(|page| !avoid(*page));
        pages
    }

    /// Begin a period with these pages. The guest must run, and go on running until the call is
    /// over.
    pub fn set_aside(&self, pages: &[GuestAddress], now: Instant) {
        let mut state = self.lock();
        let Ok(lot) = aside::lot() else { return };
        if state.bars > 0 || state.away.is_some() {
            return;
        }
        let began = processor_time();
        let mut homes = Vec::with_capacity(pages.len());
        for page in pages {
            let Ok(place) = self.memory.get_host_address(*page) else {
                continue;
            };
            // SAFETY: guest memory, into which there are raw pointers only. It is ours, too, and
            // we bring the page home before we go. A page that fails stays where it is.
            if unsafe { lot.set_aside(place as usize) }.is_ok() {
                homes.push(place as usize);
            }
        }
        state.away = Some(Away {
            began: now,
            lot,
            homes,
        });
        state.cost += processor_time().saturating_sub(began);
    }

    /// Bring all pages home: nothing is to be found amiss in the guest's memory.
    pub fn call_home(&self) {
        if let Some(away) = self.lock().away.take() {
            away.bring_home();
        }
    }

    /// Bring all pages home, and let none go until the answer is dropped.
    pub fn bar(&self) -> Bar<'_> {
        self.lock().bars += 1;
        self.call_home();
        Bar(self)
    }

    /// Where pages came home the kernel is asked for huge pages again, if all of them exists.
    fn mend(&self, homes: &[usize]) {
        let Ok(touched) = Touched::open() else { return };
        let inside = |at: usize| self.memory.iter().any(|region| holds(region, at));
        let pages = memory::HUGE_PAGE_BYTES / PAGE_BYTES as usize;
        let blocks = homes.iter().map(|home| home / memory::HUGE_PAGE_BYTES);
        for block in blocks.collect::<BTreeSet<_>>() {
            let block = block * memory::HUGE_PAGE_BYTES;
            if inside(block)
                && inside(block + memory::HUGE_PAGE_BYTES - 1)
                && touched
                    .pages(block as *const u8, pages)
                    .iter()
                    .all(|exists| *exists)
            {
                memory::join(block);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Away {
    /// How many had been missed already.
    fn bring_home(&self) -> usize {
        let missed = |home: &&usize| !self.lot.bring_home(**home);
        self.homes.iter().filter(missed).count()
    }
}

impl Drop for AccessSampler {
    fn drop(&mut self) {
        // Before the memory goes, and any machine that it belongs to.
        self.call_home();
    }
}

impl Drop for Bar<'_> {
    fn drop(&mut self) {
        self.0.lock().bars -= 1;
    }
}

fn holds(region: &GuestRegionMmap<AtomicBitmap>, at: usize) -> bool {
    let start = region.as_ptr() as usize;
    (start..start + region.len() as usize).contains(&at)
}
