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

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::boot::memory_map;
    use crate::memory::map;

    /// The zero page of a guest of 16 MiB, as its bytes.
    fn zero_page(setup_header: Option<setup_header>) -> [u8; 4096] {
        let memory = map(16, false).unwrap();
        let kernel = KernelLoaderResult {
            setup_header,
            ..Default::default()
        };
        let initramfs = Initramfs {
            address: 0x00e0_0000,
            bytes: 0x1234,
        };
        write_boot_params(&memory, &memory_map(16), &kernel, initramfs, 21, 0xe_0000).unwrap();
        let mut page = [0; 4096];
        memory
            .read_slice(&mut page, GuestAddress(BOOT_INFO))
            .unwrap();
        page
    }

    fn number(page: &[u8], at: usize, bytes: usize) -> u64 {
        let digits = page[at..at + bytes].iter().rev();
        digits.fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    // Where things lie: Documentation/arch/x86/zero-page.rst and boot.rst.
    #[test]
    fn the_zero_page_tells_an_elf_kernel_what_it_looks_for() {
        let page = zero_page(None);
        for (what, at, bytes, wanted) in [
            ("acpi_rsdp_addr", 0x70, 8, 0xe_0000),
            ("boot_flag", 0x1fe, 2, 0xaa55),
            ("header, HdrS", 0x202, 4, 0x5372_6448),
            ("type_of_loader", 0x210, 1, 0xff),
            ("ramdisk_image", 0x218, 4, 0x00e0_0000),
            ("ramdisk_size", 0x21c, 4, 0x1234),
            ("cmd_line_ptr", 0x228, 4, CMDLINE),
            ("kernel_alignment", 0x230, 4, 0x100_0000),
            ("cmdline_size", 0x238, 4, 21),
        ] {
            assert_eq!(number(&page, at, bytes), wanted, "{what}");
        }
    }

    #[test]
    fn the_memory_map_has_ram_around_what_is_reserved() {
        let page = zero_page(None);
        let entry = |n: usize| {
            let at = 0x2d0 + 20 * n;
            let field = |offset, bytes| number(&page, at + offset, bytes);
            (field(0, 8), field(8, 8), field(16, 4))
        };
        assert_eq!(page[0x1e8], 3);
        assert_eq!(entry(0), (0, 0x9_fc00, 1));
        assert_eq!(entry(1), (0xe_0000, 0x2_0000, 2));
        assert_eq!(entry(2), (0x10_0000, 15 << 20, 1));
        assert_eq!(entry(3), (0, 0, 0));
    }

    #[test]
    fn the_header_of_a_bzimage_is_kept() {
        let header = setup_header {
            version: 0x20f,
            initrd_addr_max: 0x7fff_ffff,
            ..Default::default()
        };
        let page = zero_page(Some(header));
        assert_eq!(number(&page, 0x206, 2), 0x20f);
        assert_eq!(number(&page, 0x22c, 4), 0x7fff_ffff);
        assert_eq!(number(&page, 0x210, 1), 0xff);
    }
}
