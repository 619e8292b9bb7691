//! Guest memory: how it is mapped and laid out.
//!
//! Private anonymous memory, so that the host's page tables tell pages that were never
//! touched (live migration neither sends nor creates them), in transparent huge pages where
//! the kernel has them.

use std::fs;
use std::io;

use vm_memory::bitmap::{AtomicBitmap, BitmapSlice};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vm_memory::{GuestRegionMmap, MmapRegion, VolatileSlice};
use vmm_core::spec::HUGE_PAGE_MIB;

use crate::layout::{RAM_GAP_END, RAM_GAP_START};

/// Guest-physical memory. Its bitmap records the pages that *we* wrote (device I/O), which
/// KVM's dirty log never sees; live migration needs both.
pub type GuestMemory = GuestMemoryMmap<AtomicBitmap>;

/// Bytes of a huge page.
pub const HUGE_PAGE_BYTES: usize = (HUGE_PAGE_MIB as usize) << 20;

/// Why there is no memory for the guest.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// More than the host has.
    #[error(
        "cannot give the guest {wanted_mib} MiB of memory: this host has {host_mib} MiB in all; \
         ask for less, or run it on a larger host"
    )]
    HostTooSmall {
        /// What the spec wants.
        wanted_mib: u64,
        /// What the host has in all.
        host_mib: u64,
    },
    /// The kernel refuses the mapping.
    #[error("cannot map {bytes:#x} bytes of guest memory at {address:#x}: {source}")]
    Map {
        /// Guest-physical address.
        address: u64,
        /// Length.
        bytes: usize,
        /// Why not.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The administrator reserved too few huge pages.
    #[error(
        "cannot map {mib} MiB of guest memory in huge pages: {source}; reserve some with \
         `sysctl vm.nr_hugepages=N` (`vmm check` tells how many are free), or run without"
    )]
    HugePages {
        /// Length.
        mib: usize,
        /// Why not.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The regions do not make a memory.
    #[error("cannot lay out guest memory: {0}")]
    Layout(vm_memory::GuestRegionCollectionError),
}

/// Guest-physical address and length of each region of a guest with so much memory.
pub fn regions(memory_mib: u64) -> Vec<(u64, usize)> {
    let bytes = memory_mib << 20;
    let low = bytes.min(RAM_GAP_START);
    let mut regions = vec![(0, low as usize)];
    if bytes > low {
        regions.push((RAM_GAP_END, (bytes - low) as usize));
    }
    regions
}

/// Map memory for a guest. No page of it exists until it is touched.
pub fn map(memory_mib: u64, hugepages: bool) -> Result<GuestMemory, MemoryError> {
    hold_against_host(memory_mib, hugepages, &HostMemory::look())?;
    let mut mapped = Vec::new();
    for (address, bytes) in regions(memory_mib) {
        let region = map_region(bytes, hugepages).map_err(|source| {
            if hugepages {
                let mib = bytes >> 20;
                MemoryError::HugePages { mib, source }
            } else {
                MemoryError::Map {
                    address,
                    bytes,
                    source,
                }
            }
        })?;
        mapped.extend(GuestRegionMmap::new(region, GuestAddress(address)));
    }
    GuestMemory::from_regions(mapped).map_err(MemoryError::Layout)
}

fn map_region(
    bytes: usize,
    hugepages: bool,
) -> Result<MmapRegion<AtomicBitmap>, vm_memory::mmap::MmapRegionError> {
    // Huge pages are reserved now: a pool that runs dry later would kill us.
    let flags = libc::MAP_PRIVATE
        | libc::MAP_ANONYMOUS
        | if hugepages {
            libc::MAP_HUGETLB | libc::MAP_HUGE_2MB
        } else {
            libc::MAP_NORESERVE
        };
    let region = MmapRegion::build(None, bytes, libc::PROT_READ | libc::PROT_WRITE, flags)?;
    if !hugepages {
        // SAFETY: the range is the mapping just made; the advice changes no content. A kernel
        // without transparent huge pages refuses it, which costs speed and nothing else.
        unsafe { libc::madvise(region.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
    }
    Ok(region)
}

/// Have the kernel make the pages of `place` now, in one go: whoever fills them afterwards meets
/// none that does not exist. They stay zero until then.
pub fn populate<B: BitmapSlice>(place: &VolatileSlice<'_, B>) {
    let start = place.ptr_guard_mut().as_ptr().cast();
    // SAFETY: the range is mapped guest memory, no content of which the advice changes. A kernel
    // that does not know it (Linux before 5.14), or has no memory left, leaves the pages to be
    // made when they are written to.
    unsafe { libc::madvise(start, place.len(), libc::MADV_POPULATE_WRITE) };
}

/// Ask for one huge page in place of the small ones at `block`, [`HUGE_PAGE_BYTES`] of guest
/// memory that all exist. The kernel copies them to where it has room; the guest waits for those
/// it touches meanwhile.
pub fn join(block: usize) {
    // SAFETY: the range is mapped guest memory, no content of which the advice changes. A kernel
    // that does not know it (Linux before 6.1), or has no huge page, leaves it to khugepaged.
    unsafe {
        libc::madvise(
            block as *mut libc::c_void,
            HUGE_PAGE_BYTES,
            libc::MADV_COLLAPSE,
        )
    };
}

/// Throw away everything the guest wrote, as switching it off would.
pub fn clear(memory: &GuestMemory) -> io::Result<()> {
    for region in memory.iter() {
        // SAFETY: the range is one of our private anonymous mappings; nobody holds a Rust
        // reference into guest memory, and its pages read as zero afterwards.
        let answer = unsafe {
            libc::madvise(
                region.as_ptr().cast(),
                region.len() as usize,
                libc::MADV_DONTNEED,
            )
        };
        if answer != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// What the host has, in MiB.
struct HostMemory {
    total_mib: u64,
    available_mib: u64,
}

impl HostMemory {
    fn look() -> Self {
        Self::read(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
    }

    /// Without /proc the mapping itself is the judge.
    fn read(meminfo: &str) -> Self {
        let mib = |name| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some(kib / 1024)
        };
        Self {
            total_mib: mib("MemTotal:").unwrap_or(u64::MAX),
            available_mib: mib("MemAvailable:").unwrap_or(u64::MAX),
        }
    }
}

/// More than there is in all is refused; more than is free now is not: a guest may well never touch
/// it. From huge pages the kernel gives all of it or nothing.
fn hold_against_host(
    wanted_mib: u64,
    hugepages: bool,
    host: &HostMemory,
) -> Result<(), MemoryError> {
    if wanted_mib > host.total_mib {
        let host_mib = host.total_mib;
        return Err(MemoryError::HostTooSmall {
            wanted_mib,
            host_mib,
        });
    }
    if wanted_mib > host.available_mib && !hugepages {
        tracing::warn!(
            "the guest may take {wanted_mib} MiB of memory and this host has {} MiB to give now; \
             should the guest use it all, the kernel swaps or kills: free some, or ask for less",
            host.available_mib
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn memory_goes_around_the_gap() {
        assert_eq!(regions(512), [(0, 512 << 20)]);
        assert_eq!(regions(3072), [(0, 3 << 30)]);
        assert_eq!(regions(4096), [(0, 3 << 30), (RAM_GAP_END, 1 << 30)]);
    }

    #[test]
    fn memory_larger_than_the_host_is_refused() {
        let error = map(1 << 40, false).unwrap_err();
        assert!(error.to_string().contains("ask for less"), "{error}");
    }

    #[test]
    fn memory_is_held_against_all_that_the_host_has() {
        let host =
            HostMemory::read("MemTotal: 2097152 kB\nMemFree: 1 kB\nMemAvailable:  1024 kB\n");
        assert_eq!((host.total_mib, host.available_mib), (2048, 1));
        hold_against_host(2048, false, &host).unwrap();
        let error = hold_against_host(2049, true, &host)
            .unwrap_err()
            .to_string();
        assert!(error.contains("2048 MiB in all"), "{error}");
        hold_against_host(u64::MAX, false, &HostMemory::read("MemTotal: much\n")).unwrap();
    }

    #[test]
    fn what_is_populated_exists_and_its_neighbours_do_not() {
        const BYTES: usize = 64 << 10;
        let memory = map(16, false).unwrap();
        let at = |bytes: u64| memory.get_slice(GuestAddress(bytes), BYTES).unwrap();
        populate(&at(4 << 20));
        let resident = |place: VolatileSlice<'_, _>| {
            let mut pages = [0u8; BYTES / 4096];
            let start = place.ptr_guard_mut().as_ptr().cast();
            // SAFETY: the range is mapped, and there is a byte for each of its pages.
            let answer = unsafe { libc::mincore(start, BYTES, pages.as_mut_ptr()) };
            assert_eq!(answer, 0);
            pages.iter().filter(|page| **page & 1 == 1).count()
        };
        assert_eq!(resident(at(4 << 20)), BYTES / 4096);
        assert_eq!(resident(at(12 << 20)), 0);
    }

    #[test]
    fn cleared_memory_reads_as_zero() {
        let memory = map(16, false).unwrap();
        memory.write_obj(42u64, GuestAddress(0x1000)).unwrap();
        clear(&memory).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x1000)).unwrap(), 0);
    }
}
