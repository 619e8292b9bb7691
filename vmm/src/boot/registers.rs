//! Registers with which a processor enters a kernel, and the tables they point to.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use super::{BootError, Entry, write};
use crate::layout::{BOOT_GDT, BOOT_INFO, BOOT_PAGE_TABLES, BOOT_STACK};
use crate::memory::GuestMemory;

// Intel SDM vol. 3, §2.5, §2.2.1, §3.4.5.
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 1 << 1;
const PAGE_PRESENT_WRITABLE: u64 = 0b11;
const PAGE_LARGE: u64 = 1 << 7;
const TABLE_BYTES: u64 = 4096;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
/// Identity-mapped with large pages: all that lies below 4 GiB.
const MAPPED_GIB: u64 = 4;

const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;
const TASK_SELECTOR: u16 = 0x18;
// Type, DPL and flags as in bits 40..56 of a descriptor.
const CODE_64: u16 = 0xa09b;
const CODE_32: u16 = 0xc09b;
const DATA: u16 = 0xc093;
const TASK_32: u16 = 0x008b;
const FLAT_LIMIT: u32 = 0xf_ffff;
const TASK_LIMIT: u32 = 0x67;

/// General registers at `entry`.
pub fn general(entry: Entry) -> kvm_regs {
    let common = kvm_regs {
        rflags: RFLAGS_RESERVED,
        rsp: BOOT_STACK,
        rbp: BOOT_STACK,
        ..Default::default()
    };
    match entry {
        Entry::Long { rip } => kvm_regs {
            rip,
            rsi: BOOT_INFO,
            ..common
        },
        Entry::Pvh { rip } => kvm_regs {
            rip,
            rbx: BOOT_INFO,
            ..common
        },
    }
}

/// Write the tables that `entry` needs and point `sregs` at them.
pub fn special(entry: Entry, sregs: &mut kvm_sregs, memory: &GuestMemory) -> Result<(), BootError> {
    let code = match entry {
        Entry::Long { .. } => CODE_64,
        Entry::Pvh { .. } => CODE_32,
    };
    let gdt = [
        0,
        descriptor(code, FLAT_LIMIT),
        descriptor(DATA, FLAT_LIMIT),
        descriptor(TASK_32, TASK_LIMIT),
    ];
    let bytes: Vec<u8> = gdt.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    write(memory, "descriptor table", BOOT_GDT, &bytes)?;
    sregs.gdt.base = BOOT_GDT;
    sregs.gdt.limit = bytes.len() as u16 - 1;

    let data = segment(DATA, DATA_SELECTOR, FLAT_LIMIT);
    sregs.cs = segment(code, CODE_SELECTOR, FLAT_LIMIT);
    for register in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *register = data;
    }
    sregs.tr = segment(TASK_32, TASK_SELECTOR, TASK_LIMIT);
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    if matches!(entry, Entry::Long { .. }) {
        write_page_tables(memory)?;
        sregs.cr3 = BOOT_PAGE_TABLES;
        sregs.cr4 = CR4_PAE;
        sregs.cr0 |= CR0_PG;
        sregs.efer = EFER_LME | EFER_LMA;
    }
    Ok(())
}

fn descriptor(flags: u16, limit: u32) -> u64 {
    let (flags, limit) = (u64::from(flags), u64::from(limit));
    ((flags & 0xf0ff) << 40) | ((limit & 0xf_0000) << 32) | (limit & 0xffff)
}

fn segment(flags: u16, selector: u16, limit: u32) -> kvm_segment {
    let bit = |n: u16| ((flags >> n) & 1) as u8;
    let granular = bit(15) == 1;
    kvm_segment {
        base: 0,
        limit: if granular {
            (limit << 12) | 0xfff
        } else {
            limit
        },
        selector,
        type_: (flags & 0xf) as u8,
        s: bit(4),
        dpl: ((flags >> 5) & 3) as u8,
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: 0,
        padding: 0,
    }
}

fn write_page_tables(memory: &GuestMemory) -> Result<(), BootError> {
    let level3 = BOOT_PAGE_TABLES + TABLE_BYTES;
    let level2 = level3 + TABLE_BYTES;
    let pointers = |first: u64, count: u64, step: u64, flags: u64| -> Vec<u8> {
        (0..count)
            .flat_map(|n| ((first + n * step) | flags).to_le_bytes())
            .collect()
    };
    let table = |address, entries: &[u8]| write(memory, "page tables", address, entries);
    table(
        BOOT_PAGE_TABLES,
        &pointers(level3, 1, TABLE_BYTES, PAGE_PRESENT_WRITABLE),
    )?;
    table(
        level3,
        &pointers(level2, MAPPED_GIB, TABLE_BYTES, PAGE_PRESENT_WRITABLE),
    )?;
    let pages = (MAPPED_GIB << 30) / LARGE_PAGE_BYTES;
    let large = PAGE_PRESENT_WRITABLE | PAGE_LARGE;
    table(level2, &pointers(0, pages, LARGE_PAGE_BYTES, large))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_and_segments_say_the_same() {
        assert_eq!(descriptor(CODE_64, FLAT_LIMIT), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(CODE_32, FLAT_LIMIT), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(DATA, FLAT_LIMIT), 0x00cf_9300_0000_ffff);
        let code = segment(CODE_64, CODE_SELECTOR, FLAT_LIMIT);
        assert_eq!((code.l, code.db, code.g, code.type_), (1, 0, 1, 0xb));
        assert_eq!(code.limit, u32::MAX);
        assert_eq!(
            segment(TASK_32, TASK_SELECTOR, TASK_LIMIT).limit,
            TASK_LIMIT
        );
    }
}
