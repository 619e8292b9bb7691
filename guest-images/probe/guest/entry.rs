//! Where ring 3 begins, and where it ends when something is wrong.

use core::fmt;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering;

use crate::abi::{MAGIC, MESSAGE_BYTES, STATE_FAILED, STATE_FILLING, VERSION};
use crate::clock::Clock;
use crate::config::Config;
use crate::memory::{self, Ram};
use crate::work::{Plan, Worker};
use crate::{ring0, serial, smp};

unsafe extern "C" {
    static mut idt: [[u64; 2]; 256];
    static trap_stubs: [[u8; 16]; 32];
    fn trap_ud();
    fn trap_tick();
    fn trap_ignore();
}

/// What vCPU 0 works out before it starts the others.
static mut PLAN: MaybeUninit<Plan> = MaybeUninit::uninit();

#[unsafe(no_mangle)]
extern "C" fn ring3_entry(vcpu: usize) -> ! {
    if vcpu != 0 {
        // SAFETY: vCPU 0 has written it, and leaves it alone since it started this one.
        Worker::new(vcpu, unsafe { &*(&raw const PLAN).cast() }).run()
    }
    install_traps();
    let config = Config::parse(memory::cmdline());
    // SAFETY: no other vCPU runs yet.
    let plan: &Plan = unsafe {
        let slot = (&raw mut PLAN).cast::<Plan>();
        slot.write(Plan::new(config, Ram::find()));
        &*slot
    };
    announce(plan);
    smp::start_others(config.cpus as usize, &Clock::new(0, config.tsc_mhz));
    Worker::new(0, plan).run()
}

/// Completes the header; the first byte of this line left in `boot.s`.
fn announce(plan: &Plan) {
    let header = &memory::report().header;
    let config = &plan.config;
    header.version.store(VERSION, Ordering::Relaxed);
    header.state.store(STATE_FILLING, Ordering::Relaxed);
    header.vcpus.store(config.cpus, Ordering::Relaxed);
    header
        .ram_bytes
        .store(plan.ram.total_bytes(), Ordering::Relaxed);
    header.fill_pages.store(plan.fill_pages, Ordering::Relaxed);
    header.hot_pages.store(plan.hot_pages, Ordering::Relaxed);
    header.seed.store(config.seed, Ordering::Relaxed);
    header.magic.store(MAGIC, Ordering::Release);
    let ram_mib = plan.ram.total_bytes() >> 20;
    serial::print(format_args!(
        "robe {VERSION}: {ram_mib} MiB of RAM, {config}\n"
    ));
}

fn install_traps() {
    const UNDEFINED: usize = 6;
    const TIMER_VECTOR: usize = smp::TIMER_VECTOR as usize;
    for vector in 0..256 {
        let handler = match vector {
            UNDEFINED => trap_ud as *const () as u64,
            // SAFETY: code of `boot.s`; only its address is taken.
            0..32 => unsafe { &raw const trap_stubs[vector] as u64 },
            TIMER_VECTOR => trap_tick as *const () as u64,
            _ => trap_ignore as *const () as u64,
        };
        // 64-bit interrupt gate, ring 0 code (Intel SDM volume 3, 6.14.1).
        let low = handler & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        // SAFETY: vCPU 0 alone, before any other runs.
        unsafe { idt[vector] = [low, handler >> 32] };
    }
}

/// An exception that is no call for a service.
#[unsafe(no_mangle)]
extern "C" fn fault_entry(vector: u64, code: u64, rip: u64, cr2: u64) -> ! {
    fail(format_args!(
        "fault {vector}, code {code:#x}, at {rip:#x}, address {cr2:#x}"
    ))
}

/// Says why in the report and on the serial line, and stops.
pub fn fail(why: fmt::Arguments<'_>) -> ! {
    let header = &memory::report().header;
    let text = serial::format(why);
    for (word, bytes) in header.message.iter().zip(text.as_bytes().chunks(8)) {
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        word.store(u64::from_le_bytes(padded), Ordering::Relaxed);
    }
    let len = text.as_bytes().len().min(MESSAGE_BYTES);
    header.message_len.store(len as u64, Ordering::Relaxed);
    header.state.store(STATE_FAILED, Ordering::Release);
    serial::print(format_args!("\nprobe failed: "));
    ring0::write_serial(text.as_bytes());
    ring0::write_serial(b"\n");
    ring0::stop()
}
