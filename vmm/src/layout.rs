//! Where things lie in guest-physical space and on the guest's ports.
//!
//! ```text
//!   0            boot data (page tables, GDT, start info, command line), up to 0x9fc00
//!   0xe_0000     ACPI tables (the RSDP is searched for from here, ACPI 6.5 §5.2.5.1)
//!   0x10_0000    RAM
//!   3 GiB        PCI BARs, ECAM, IOAPIC, local APIC, KVM's own pages
//!   4 GiB        RAM again
//! ```

use crate::pci::MmioWindow;
use crate::pci::root::ECAM_BYTES;

/// RAM below 4 GiB ends here at the latest.
pub const RAM_GAP_START: u64 = 3 << 30;
/// RAM goes on here.
pub const RAM_GAP_END: u64 = 4 << 30;

/// GDT of the boot processor.
pub const BOOT_GDT: u64 = 0x500;
/// Boot parameters of the 64-bit Linux protocol, or the start info of PVH.
pub const BOOT_INFO: u64 = 0x7000;
/// The PVH memory map.
pub const PVH_MEMORY_MAP: u64 = 0x6000;
/// The PVH module list.
pub const PVH_MODULES: u64 = 0x6f00;
/// Stack of the boot processor, growing down.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Top-level page table of the boot processor; the next levels follow.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Conventional memory ends here.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// End of the room for ACPI tables.
pub const ACPI_TABLES_END: u64 = RESET_VECTOR;
/// Where a processor starts in a BIOS: the last paragraph of the first MiB.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// RAM for the kernel starts here.
pub const HIGH_RAM: u64 = 0x10_0000;
/// Where a bzImage is loaded.
pub const KERNEL: u64 = 0x20_0000;

/// Window of all PCI BARs.
pub const PCI_WINDOW: MmioWindow = MmioWindow {
    base: 0xc000_0000,
    bytes: 0x2000_0000,
};
/// PCI configuration space.
pub const ECAM: u64 = 0xe000_0000;
/// Length of [`ECAM`].
pub const ECAM_LEN: u64 = ECAM_BYTES;
/// The IOAPIC.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// One page that Intel's KVM needs for real mode (api.rst, `KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that Intel's KVM needs for real mode (api.rst, `KVM_SET_TSS_ADDR`).
pub const KVM_TSS: u64 = 0xfffb_d000;

/// Pins of the IOAPIC; message-signalled interrupts are routed above.
pub const IOAPIC_PINS: u32 = 24;
/// Interrupt of the serial port.
pub const SERIAL_IRQ: u32 = 4;
/// Interrupt of the power button's event device.
pub const POWER_BUTTON_IRQ: u32 = 9;

/// The serial port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Sleep control, sleep status and reset registers.
pub const POWER_PORT: u16 = 0x600;
/// Where the guest's kernel reports a panic (QEMU's pvpanic).
pub const PANIC_PORT: u16 = 0x505;
/// Command port of the keyboard controller, by which old software resets the machine.
pub const KEYBOARD_PORT: u16 = 0x64;
