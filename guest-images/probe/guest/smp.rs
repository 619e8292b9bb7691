//! The other vCPUs, started one after the other by INIT and SIPI (Intel SDM volume 3, 9.4.4).

use core::sync::atomic::{AtomicU64, Ordering};

use crate::abi::MAX_VCPUS;
use crate::clock::Clock;
use crate::memory;

const TRAMPOLINE_GPA: u64 = 0x8000;
const APIC_GPA: u64 = 0xfee0_0000;
const APIC_SPURIOUS: u64 = 0xf0;
const APIC_COMMAND_LOW: u64 = 0x300;
const APIC_COMMAND_HIGH: u64 = 0x310;
const APIC_TIMER: u64 = 0x320;
const APIC_TIMER_COUNT: u64 = 0x380;
const APIC_TIMER_DIVIDE: u64 = 0x3e0;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600 | (TRAMPOLINE_GPA >> 12) as u32;
const START_LIMIT_NS: u64 = 5_000_000_000;
/// The vector of the local timer.
pub const TIMER_VECTOR: u32 = 0x40;
/// KVM's local APIC timer counts nanoseconds.
const APIC_TIMER_NS: u64 = 1;

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
    static starting_vcpu: AtomicU64;
    static tick_counters: [AtomicU64; MAX_VCPUS];
}

/// Starts vCPUs 1 to `count - 1` and waits for each to reach its loop.
pub fn start_others(count: usize, clock: &Clock) {
    if count == 1 {
        return;
    }
    // SAFETY: the trampoline is shorter than a page, and the page at its address is free: what
    // the boot loader left there has been read.
    unsafe {
        let len = (&raw const trampoline_end).offset_from_unsigned(&raw const trampoline_start);
        (&raw const trampoline_start).copy_to(TRAMPOLINE_GPA as *mut u8, len);
    }
    let up = &memory::report().header.vcpus_up;
    for vcpu in 1..count {
        // SAFETY: a static of `boot.s` that only this vCPU writes.
        unsafe { starting_vcpu.store(vcpu as u64, Ordering::SeqCst) };
        send(vcpu, INIT);
        send(vcpu, STARTUP);
        let start = clock.read().ns;
        while up.load(Ordering::Acquire) < vcpu as u64 {
            assert!(
                clock.read().ns - start < START_LIMIT_NS,
                "vCPU {vcpu} does not start"
            );
            core::hint::spin_loop();
        }
    }
}

/// Starts this vCPU's periodic timer interrupt; each one adds 1 to `counter`.
pub fn start_timer(vcpu: usize, period_us: u64, counter: &'static AtomicU64) {
    // SAFETY: a static of `boot.s` that only this vCPU's handler reads.
    unsafe { tick_counters[vcpu].store(&raw const *counter as u64, Ordering::SeqCst) };
    let count = period_us.saturating_mul(1000 / APIC_TIMER_NS);
    write_apic(APIC_SPURIOUS, 0x1ff);
    write_apic(APIC_TIMER_DIVIDE, 0b1011);
    write_apic(APIC_TIMER, 1 << 17 | TIMER_VECTOR);
    write_apic(APIC_TIMER_COUNT, u32::try_from(count).unwrap_or(u32::MAX));
}

fn send(apic_id: usize, command: u32) {
    write_apic(APIC_COMMAND_HIGH, (apic_id as u32) << 24);
    write_apic(APIC_COMMAND_LOW, command);
}

fn write_apic(register: u64, value: u32) {
    // SAFETY: the local APIC's page, mapped by `Ram::find`.
    unsafe { ((APIC_GPA + register) as *mut u32).write_volatile(value) };
}
