//! Start info of Xen's PVH boot protocol (xen/include/public/arch-x86/hvm/start_info.h).

use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::ByteValued;

use super::{BootError, Initramfs, MapEntry, write};
use crate::layout::{BOOT_INFO, CMDLINE, PVH_MEMORY_MAP, PVH_MODULES};
use crate::memory::GuestMemory;

const START_MAGIC: u32 = 0x336e_c578;
const MAP_RAM: u32 = 1;
const MAP_RESERVED: u32 = 2;

/// Write the start info, the module list and the memory map.
pub fn write_start_info(
    memory: &GuestMemory,
    map: &[MapEntry],
    initramfs: Initramfs,
    rsdp: u64,
) -> Result<(), BootError> {
    let mut info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        cmdline_paddr: CMDLINE,
        memmap_paddr: PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        rsdp_paddr: rsdp,
        ..Default::default()
    };
    if initramfs.bytes > 0 {
        let module = hvm_modlist_entry {
            paddr: initramfs.address,
            size: initramfs.bytes,
            ..Default::default()
        };
        info.nr_modules = 1;
        info.modlist_paddr = PVH_MODULES;
        write(memory, "module list", PVH_MODULES, module.as_slice())?;
    }
    for (n, entry) in (0..).zip(map) {
        let entry = hvm_memmap_table_entry {
            addr: entry.address,
            size: entry.bytes,
            type_: if entry.usable { MAP_RAM } else { MAP_RESERVED },
            ..Default::default()
        };
        let at = PVH_MEMORY_MAP + n * size_of_val(&entry) as u64;
        write(memory, "memory map", at, entry.as_slice())?;
    }
    write(memory, "start info", BOOT_INFO, info.as_slice())
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::boot::memory_map;
    use crate::memory::map;

    fn long(memory: &GuestMemory, at: u64) -> u64 {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    // Where things lie: xen/include/public/arch-x86/hvm/start_info.h.
    #[test]
    fn the_start_info_leads_to_everything() {
        let memory = map(16, false).unwrap();
        let initramfs = Initramfs {
            address: 0x00e0_0000,
            bytes: 0x1234,
        };
        write_start_info(&memory, &memory_map(16), initramfs, 0xe_0000).unwrap();
        let at = |offset| long(&memory, BOOT_INFO + offset);
        assert_eq!(at(0), 1 << 32 | 0x336e_c578, "magic, version");
        assert_eq!(at(8), 1 << 32, "flags, number of modules");
        assert_eq!((at(24), at(32)), (CMDLINE, 0xe_0000));
        let module = at(16);
        let initramfs = (long(&memory, module), long(&memory, module + 8));
        assert_eq!(initramfs, (0x00e0_0000, 0x1234));
        let (table, entries) = (at(40), at(48));
        assert_eq!(entries, 3);
        let entry = |n: u64| [0, 8, 16].map(|offset| long(&memory, table + 24 * n + offset));
        assert_eq!(entry(0), [0, 0x9_fc00, 1]);
        assert_eq!(entry(1), [0xe_0000, 0x2_0000, 2]);
        assert_eq!(entry(2), [0x10_0000, 15 << 20, 1]);
    }

    #[test]
    fn without_an_initramfs_there_is_no_module() {
        let memory = map(16, false).unwrap();
        write_start_info(&memory, &memory_map(16), Initramfs::default(), 0).unwrap();
        assert_eq!(long(&memory, BOOT_INFO + 8), 0);
        assert_eq!(long(&memory, BOOT_INFO + 16), 0);
    }
}
