//! What a processor finds where a BIOS would start.
//!
//! On a hardware-reduced machine without EFI, Linux resets neither by the ACPI register nor
//! by the keyboard controller: it jumps to the BIOS in real mode (arch/x86/kernel/reboot.c,
//! `reboot_init` prefers EFI there and falls back to `BOOT_BIOS`). This is that BIOS.

use super::{BootError, write};
use crate::devices::power::{RESET_VALUE, reset_port};
use crate::layout::RESET_VECTOR;
use crate::memory::GuestMemory;

/// Real-mode code: write the reset value to the reset port, then halt for good.
fn code() -> [u8; 9] {
    let [low, high] = reset_port().to_le_bytes();
    [
        0xb0,
        RESET_VALUE, // mov al, RESET_VALUE
        0xba,
        low,
        high, // mov dx, port
        0xee, // out dx, al
        0xf4, // hlt
        0xeb,
        0xfd, // jmp to hlt
    ]
}

/// Put it there.
pub fn write_reset_vector(memory: &GuestMemory) -> Result<(), BootError> {
    write(memory, "reset vector", RESET_VECTOR, &code())
}
