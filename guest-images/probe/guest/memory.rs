//! RAM as the boot loader described it, mapped one to one and open to ring 3.

use crate::abi::{FILL_START_GPA, HEADER_BYTES, MAX_VCPUS, REPORT_GPA, ReportRegion};
use crate::content::{PAGE_BYTES, PAGE_WORDS};

const MAX_REGIONS: usize = 16;
const MAX_MAPPED_GIB: usize = 64;
const MAX_CMDLINE_BYTES: usize = 1024;
const MEMMAP_RAM: u32 = 1;
const START_INFO_MAGIC: u32 = 0x336e_c578;
const GIB: u64 = 1 << 30;
const PRESENT_WRITE_USER: u64 = 7;
const LARGE: u64 = 0x80;
const LARGE_BYTES: u64 = 2 << 20;

const _: () = assert!(HEADER_BYTES as u64 == PAGE_BYTES && MAX_VCPUS <= 64);

unsafe extern "C" {
    static start_info: u64;
    static mut pdpt: [u64; 512];
}

/// `hvm_start_info` (Xen public/arch-x86/hvm/start_info.h).
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    modlist_gpa: u64,
    cmdline_gpa: u64,
    rsdp_gpa: u64,
    memmap_gpa: u64,
    memmap_entries: u32,
    reserved: u32,
}

#[repr(C)]
struct MemmapEntry {
    gpa: u64,
    bytes: u64,
    kind: u32,
    reserved: u32,
}

#[repr(align(4096))]
struct Directories([[u64; 512]; MAX_MAPPED_GIB]);
static mut DIRECTORIES: Directories = Directories([[0; 512]; MAX_MAPPED_GIB]);

#[derive(Clone, Copy)]
struct Region {
    start: u64,
    end: u64,
}

/// The RAM that can be filled.
pub struct Ram {
    regions: [Region; MAX_REGIONS],
    count: usize,
    total_bytes: u64,
}

fn boot_info() -> &'static StartInfo {
    // SAFETY: `boot.s` stored the address that the loader gave it, in mapped low memory.
    let info = unsafe { &*(start_info as *const StartInfo) };
    assert!(
        info.magic == START_INFO_MAGIC,
        "not started by the PVH protocol"
    );
    info
}

/// The kernel command line.
pub fn cmdline() -> &'static str {
    let start = boot_info().cmdline_gpa as *const u8;
    if start.is_null() {
        return "";
    }
    // SAFETY: the loader's string lies in mapped low memory and ends with a zero byte.
    let bytes = unsafe {
        let len = (0..MAX_CMDLINE_BYTES).find(|i| *start.add(*i) == 0);
        core::slice::from_raw_parts(start, len.unwrap_or(MAX_CMDLINE_BYTES))
    };
    core::str::from_utf8(bytes).unwrap_or("")
}

/// The report.
pub fn report() -> &'static ReportRegion {
    // SAFETY: the linker script keeps this region free; it holds only atomic words.
    unsafe { &*(REPORT_GPA as *const ReportRegion) }
}

impl Ram {
    /// Reads the boot memory map and maps what it names.
    pub fn find() -> Ram {
        let info = boot_info();
        assert!(info.version >= 1, "the boot loader gave no memory map");
        // SAFETY: the loader's table lies in mapped low memory.
        let entries = unsafe {
            core::slice::from_raw_parts(
                info.memmap_gpa as *const MemmapEntry,
                info.memmap_entries as usize,
            )
        };
        let mut ram = Ram {
            regions: [Region { start: 0, end: 0 }; MAX_REGIONS],
            count: 0,
            total_bytes: 0,
        };
        for entry in entries.iter().filter(|entry| entry.kind == MEMMAP_RAM) {
            ram.total_bytes += entry.bytes;
            let start = entry.gpa.next_multiple_of(PAGE_BYTES).max(FILL_START_GPA);
            let end = (entry.gpa + entry.bytes).min(MAX_MAPPED_GIB as u64 * GIB);
            let end = end - end % PAGE_BYTES;
            if start < end && ram.count < MAX_REGIONS {
                ram.regions[ram.count] = Region { start, end };
                ram.count += 1;
            }
        }
        let top = ram
            .regions
            .iter()
            .map(|region| region.end)
            .max()
            .unwrap_or(0);
        // The fourth GiB holds the local APIC, RAM or not.
        map_gib(1..top.div_ceil(GIB).max(4) as usize);
        ram
    }

    /// Leaves so many of the pages that can be filled alone, from the lowest on.
    pub fn skip(&mut self, pages: u64) {
        let mut bytes = pages.saturating_mul(PAGE_BYTES);
        for region in &mut self.regions[..self.count] {
            let skipped = bytes.min(region.end - region.start);
            region.start += skipped;
            bytes -= skipped;
        }
    }

    /// Bytes of RAM in the memory map.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Pages that can be filled.
    pub fn pages(&self) -> u64 {
        let bytes: u64 = self.regions[..self.count]
            .iter()
            .map(|r| r.end - r.start)
            .sum();
        bytes / PAGE_BYTES
    }

    /// Address of the page with this index.
    pub fn gpa(&self, page: u64) -> u64 {
        let mut offset = page * PAGE_BYTES;
        for region in &self.regions[..self.count] {
            let bytes = region.end - region.start;
            if offset < bytes {
                return region.start + offset;
            }
            offset -= bytes;
        }
        panic!("page {page} is beyond RAM")
    }
}

/// The page at an address that [`Ram::gpa`] gave.
///
/// # Safety
/// Only the vCPU whose slice holds the page may ask for it, and only once at a time.
#[allow(clippy::mut_from_ref)]
pub unsafe fn page(gpa: u64) -> &'static mut [u64; PAGE_WORDS] {
    // SAFETY: mapped one to one, RAM, page aligned, and the caller's alone.
    unsafe { &mut *(gpa as *mut [u64; PAGE_WORDS]) }
}

/// The first GiB is mapped from the start (`boot.s`).
fn map_gib(gib: core::ops::Range<usize>) {
    for index in gib {
        // SAFETY: vCPU 0 alone, before any other runs, adds entries where there were none.
        unsafe {
            let directory = &raw mut DIRECTORIES.0[index];
            let base = (index as u64 * GIB) | LARGE | PRESENT_WRITE_USER;
            for large in 0..512 {
                (*directory)[large] = base + large as u64 * LARGE_BYTES;
            }
            let table = &raw mut pdpt;
            (*table)[index] = directory as u64 | PRESENT_WRITE_USER;
        }
    }
}
