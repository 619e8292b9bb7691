//! Does taking pages away work on this kernel? Tried on memory of no importance.

use std::fs;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::{Lot, PAGE};

/// Pages of the memory that is tried with.
const PAGES: usize = 8;
/// Which of them is taken away.
const TAKEN: usize = 3;
const MARK: u64 = 0x6f64_7769_7421;

/// Take a page away and miss it; take it away again and bring it home; and see that nothing is
/// different afterwards.
pub fn run(lot: &Lot) -> Result<(), String> {
    let memory = Scratch::map().map_err(|error| format!("cannot map a few pages: {error}"))?;
    for page in 0..PAGES {
        memory.write(page, MARK + page as u64);
    }
    let home = memory.page(TAKEN) as usize;
    let take = || {
        // SAFETY: the page is in the scratch memory, which outlives its absence below and into
        // which there are raw pointers only.
        unsafe { lot.set_aside(home) }.map_err(|error| error.to_string())
    };
    take()?;
    let missed = memory.read(TAKEN);
    if lot.bring_home(home) {
        return Err("nobody noticed that it was gone".to_owned());
    }
    take()?;
    let untouched = lot.bring_home(home);
    let whole = (0..PAGES).all(|page| memory.read(page) == MARK + page as u64);
    if missed != MARK + TAKEN as u64 || !untouched || !whole {
        return Err("it comes back different".to_owned());
    }
    match mappings(&memory.range()) {
        1 => Ok(()),
        // Each page would leave some behind until the process may have no more.
        more => Err(format!("it leaves {more} mappings where there was one")),
    }
}

/// How many mappings of this process lie in `range`.
pub fn mappings(range: &Range<usize>) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let bounds = |line: &str| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        Some((number(start)?, number(end)?))
    };
    maps.lines()
        .filter_map(bounds)
        .filter(|(start, end)| *start < range.end && *end > range.start)
        .count()
}

struct Scratch(NonNull<libc::c_void>);

impl Scratch {
    fn map() -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let null = std::ptr::null_mut();
        // SAFETY: a fresh mapping that nothing else knows of.
        let start = unsafe { mmap_anonymous(null, PAGES * PAGE, protection, MapFlags::PRIVATE) }?;
        NonNull::new(start)
            .map(Self)
            .ok_or(io::ErrorKind::OutOfMemory.into())
    }

    fn range(&self) -> Range<usize> {
        self.page(0) as usize..self.page(PAGES) as usize
    }

    fn page(&self, page: usize) -> *mut u64 {
        self.0.as_ptr().wrapping_byte_add(page * PAGE).cast()
    }

    fn read(&self, page: usize) -> u64 {
        // SAFETY: the page is mapped, and comes home when it is missed.
        unsafe { self.page(page).read_volatile() }
    }

    fn write(&self, page: usize, value: u64) {
        // SAFETY: the page is mapped, and comes home when it is missed.
        unsafe { self.page(page).write_volatile(value) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody uses it after this. Failing leaves it there.
        let _ = unsafe { munmap(self.0.as_ptr(), PAGES * PAGE) };
    }
}
