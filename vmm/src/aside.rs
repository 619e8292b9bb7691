//! Pages of guest memory that are set aside for a while, to see whether anybody misses them.
//!
//! ```text
//!            set_aside                missed, or bring_home
//!   home ───────────────► the lot ──────────────────────────► home
//! ```
//!
//! A page is moved and never copied: `mremap` takes it out of guest memory, and later puts the
//! very same page back. So there is no moment at which its content could be lost or stale, and
//! what a device still writes into a page that it holds arrives. Whoever touches the place
//! meanwhile, be it a processor, KVM, or a device thread in its own or in the kernel's code,
//! waits (userfaultfd(2)) until a thread has brought the page home.
//!
//! That thread touches no guest memory, and nobody who holds the lock does: else both would wait
//! for each other. One lot serves the whole process, because page faults are the process's.

mod faults;
mod trial;

use std::collections::BTreeMap;
use std::io;
use std::ptr;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap_anonymous, mremap_fixed};

use faults::Faults;
pub use faults::prepare;

/// So many pages can be away at a time.
pub const PLACES: usize = 64;
/// Bytes of a page.
const PAGE: usize = 4096;
/// A page that the kernel will not move back for want of memory is tried again so often ...
const HOME_TRIES: u32 = 1000;
/// ... after so long. Then the process ends: without the page the guest cannot go on.
const HOME_PAUSE: Duration = Duration::from_millis(1);

/// Where pages are while they are away.
#[derive(Debug)]
pub struct Lot {
    faults: &'static Faults,
    base: usize,
    /// The place in the lot of each page that is away, by its home.
    away: Mutex<BTreeMap<usize, usize>>,
}

/// The process's lot, or why it cannot have one.
pub fn lot() -> Result<&'static Lot, &'static str> {
    static LOT: OnceLock<Result<&Lot, String>> = OnceLock::new();
    let made = LOT.get_or_init(|| {
        let lot: &Lot = Box::leak(Box::new(Lot::open()?));
        lot.attend_and_try()?;
        Ok(lot)
    });
    made.as_ref().copied().map_err(String::as_str)
}

impl Lot {
    fn open() -> Result<Self, String> {
        let faults = prepare().as_ref().map_err(|error| {
            format!(
                "userfaultfd may not be used ({error}); run as root, or give this user access to \
                 /dev/userfaultfd"
            )
        })?;
        let (null, flags) = (ptr::null_mut(), MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a fresh mapping that nothing else knows of.
        let base = unsafe { mmap_anonymous(null, PLACES * PAGE, ProtFlags::empty(), flags) };
        let base = base.map_err(|error| format!("cannot map room for pages: {error}"))?;
        Ok(Self {
            faults,
            base: base as usize,
            away: Mutex::default(),
        })
    }

    /// Begin to bring home what is missed, and see with memory of no importance that it works.
    fn attend_and_try(&'static self) -> Result<(), String> {
        let attendant = thread::Builder::new().name("page-faults".into());
        let attending = attendant.spawn(|| self.faults.attend(|page| self.missed(page)));
        attending.map_err(|error| format!("cannot start a thread: {error}"))?;
        trial::run(self).map_err(|error| {
            format!("this kernel cannot take a page away and put it back: {error}; Linux 5.7 can")
        })
    }

    /// Set the page at `home` aside. It must exist, lie in private anonymous memory, and be
    /// brought home before its mapping goes.
    ///
    /// # Safety
    /// Nobody may hold a Rust reference into the page; all access must be through raw pointers,
    /// as to guest memory it is.
    pub unsafe fn set_aside(&self, home: usize) -> io::Result<()> {
        let mut away = self.lock();
        let taken: Vec<usize> = away.values().copied().collect();
        let free = (0..PLACES)
            .map(|place| self.base + place * PAGE)
            .find(|place| !taken.contains(place));
        let place = free.ok_or(io::ErrorKind::StorageFull)?;
        if away.contains_key(&home) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.faults.watch(home, PAGE)?;
        // SAFETY: the caller's promise; the place is one of ours and empty.
        if let Err(error) = unsafe { relocate(home, place) } {
            self.faults.unwatch(home, PAGE)?;
            return Err(error);
        }
        away.insert(home, place);
        Ok(())
    }

    /// Bring the page home; says whether it was still away, missed by nobody.
    pub fn bring_home(&self, home: usize) -> bool {
        let mut away = self.lock();
        let Some(place) = away.remove(&home) else {
            return false;
        };
        let mut tries = 0;
        // SAFETY: the page came from there. What lies there now is a hole that is watched; it
        // goes, and with it the watch.
        while let Err(error) = unsafe { relocate(place, home) } {
            tries += 1;
            if tries == HOME_TRIES {
                eprintln!(
                    "vmm: cannot put a page back into guest memory: {error}; the guest cannot go \
                     on without it. Free memory on this host"
                );
                std::process::abort();
            }
            thread::sleep(HOME_PAUSE);
        }
        drop(away);
        self.faults.wake(home, PAGE);
        true
    }

    fn missed(&self, address: usize) {
        let home = address / PAGE * PAGE;
        if !self.bring_home(home) {
            // It came home while the news was on its way.
            self.faults.wake(home, PAGE);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, usize>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Move the page at `from` to `to`, whatever is mapped there, in one step as the rest of the
/// process sees it. An empty mapping stays behind.
///
/// # Safety
/// Nobody may hold a Rust reference into either page, and nothing of worth may be at `to`.
unsafe fn relocate(from: usize, to: usize) -> io::Result<()> {
    let flags = MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP;
    let (from, to) = (from as *mut libc::c_void, to as *mut libc::c_void);
    // SAFETY: the caller's promise.
    unsafe { mremap_fixed(from, PAGE, PAGE, flags, to) }?;
    Ok(())
}

#[cfg(test)]
mod tests;
