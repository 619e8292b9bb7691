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
