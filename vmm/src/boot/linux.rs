//! Boot parameters of the 64-bit Linux boot protocol (Documentation/arch/x86/boot.rst).

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::KernelLoaderResult;
use vm_memory::ByteValued;

use super::{BootError, Initramfs, MapEntry, write};
use crate::layout::{BOOT_INFO, CMDLINE};
use crate::memory::GuestMemory;

/// The 64-bit entry lies so far behind the start of a loaded bzImage (boot.rst, "64-bit Boot
/// Protocol").
pub const BZIMAGE_ENTRY_64: u64 = 0x200;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// "Undefined" in the list of boot loaders.
const LOADER_UNDEFINED: u8 = 0xff;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Write the "zero page".
pub fn write_boot_params(
    memory: &GuestMemory,
    map: &[MapEntry],
    kernel: &KernelLoaderResult,
    initramfs: Initramfs,
    cmdline_bytes: usize,
    rsdp: u64,
) -> Result<(), BootError> {
    let mut params = boot_params {
        hdr: kernel.setup_header.unwrap_or_else(elf_header),
        acpi_rsdp_addr: rsdp,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    params.hdr.cmdline_size = cmdline_bytes as u32;
    params.hdr.ramdisk_image = initramfs.address as u32;
    params.hdr.ramdisk_size = initramfs.bytes as u32;
    for (slot, entry) in params.e820_table.iter_mut().zip(map) {
        *slot = boot_e820_entry {
            addr: entry.address,
            size: entry.bytes,
            r#type: if entry.usable {
                E820_RAM
            } else {
                E820_RESERVED
            },
        };
    }
    params.e820_entries = map.len() as u8;
    write(memory, "boot parameters", BOOT_INFO, params.as_slice())
}

/// An ELF image brings no header along.
fn elf_header() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        kernel_alignment: 0x100_0000,
        ..Default::default()
    }
}
