//! The probe guest: see the crate's documentation.
#![no_std]
#![no_main]

#[path = "../src/abi.rs"]
mod abi;
#[path = "../src/config.rs"]
mod config;
#[path = "../src/content.rs"]
mod content;

mod clock;
mod entry;
mod intrinsics;
mod memory;
mod ring0;
mod serial;
mod smp;
mod steal;
mod work;

core::arch::global_asm!(include_str!("boot.s"));

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    entry::fail(format_args!("{info}"))
}
