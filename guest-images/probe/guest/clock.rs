//! Time: kvmclock where there is one (Linux Documentation/virt/kvm/x86/msr.rst), else the TSC at
//! an assumed frequency.

use core::arch::x86_64::{_mm_lfence, _rdtsc};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence};

use crate::abi::MAX_VCPUS;
use crate::ring0;

const KVM_SIGNATURE_LEAF: u32 = 0x4000_0000;
const KVM_FEATURES_LEAF: u32 = 0x4000_0001;
const KVM_FEATURE_CLOCKSOURCE2: u32 = 1 << 3;
const MSR_KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
/// `PVCLOCK_GUEST_STOPPED`; the flags are the second byte of their word.
const STOPPED: u32 = 1 << 9;
/// An update takes far less; a version that stays odd longer means a broken host.
const MAX_RETRIES: u32 = 1_000_000;

/// `pvclock_vcpu_time_info`, written by the host.
#[repr(C, align(64))]
struct TimeInfo {
    version: AtomicU32,
    _pad: AtomicU32,
    tsc_timestamp: AtomicU64,
    system_time_ns: AtomicU64,
    tsc_to_system_mul: AtomicU32,
    tsc_shift_and_flags: AtomicU32,
}

static TIME_INFO: [TimeInfo; MAX_VCPUS] = [const {
    TimeInfo {
        version: AtomicU32::new(0),
        _pad: AtomicU32::new(0),
        tsc_timestamp: AtomicU64::new(0),
        system_time_ns: AtomicU64::new(0),
        tsc_to_system_mul: AtomicU32::new(0),
        tsc_shift_and_flags: AtomicU32::new(0),
    }
}; MAX_VCPUS];

/// One reading of both clocks.
#[derive(Clone, Copy)]
pub struct Reading {
    pub tsc: u64,
    pub ns: u64,
}

/// How to turn TSC ticks into nanoseconds: `((ticks << shift) * mul) >> 32`.
#[derive(Clone, Copy)]
struct Scale {
    mul: u32,
    shift: i8,
}

impl Scale {
    fn ns(self, ticks: u64) -> u64 {
        let ticks = if self.shift < 0 {
            ticks >> -self.shift
        } else {
            ticks << self.shift
        };
        ((u128::from(ticks) * u128::from(self.mul)) >> 32) as u64
    }
}

/// One vCPU's clock.
pub struct Clock {
    info: Option<&'static TimeInfo>,
    assumed: Scale,
}

impl Clock {
    /// Switches this vCPU's clock on.
    pub fn new(vcpu: usize, assumed_tsc_mhz: u64) -> Clock {
        let mul = (1000u64 << 32)
            .checked_div(assumed_tsc_mhz.max(1))
            .unwrap_or(0);
        // Below 1 GHz the multiplier would need more than 32 bits.
        let assumed = Scale {
            mul: u32::try_from(mul >> 1).unwrap_or(u32::MAX),
            shift: 1,
        };
        if !has_kvm_feature(KVM_FEATURE_CLOCKSOURCE2) {
            return Clock {
                info: None,
                assumed,
            };
        }
        let info = &TIME_INFO[vcpu];
        // SAFETY: the host writes to this static of its own, aligned as it must be.
        unsafe { ring0::wrmsr(MSR_KVM_SYSTEM_TIME_NEW, &raw const *info as u64 | 1) };
        Clock {
            info: Some(info),
            assumed,
        }
    }

    /// Whether it is kvmclock.
    pub fn is_kvmclock(&self) -> bool {
        self.info.is_some()
    }

    /// The time now.
    pub fn read(&self) -> Reading {
        let Some(info) = self.info else {
            let tsc = rdtsc();
            return Reading {
                tsc,
                ns: self.assumed.ns(tsc),
            };
        };
        for _ in 0..MAX_RETRIES {
            let version = info.version.load(Ordering::Acquire);
            let scale = scale(info);
            let base_tsc = info.tsc_timestamp.load(Ordering::Relaxed);
            let base_ns = info.system_time_ns.load(Ordering::Relaxed);
            let tsc = rdtsc();
            compiler_fence(Ordering::SeqCst);
            if version & 1 == 0 && version == info.version.load(Ordering::Acquire) {
                let ns = base_ns.wrapping_add(scale.ns(tsc.saturating_sub(base_tsc)));
                return Reading { tsc, ns };
            }
            core::hint::spin_loop();
        }
        panic!("kvmclock stays in the middle of an update")
    }

    /// Whether the host says that it has stopped the guest since this was last asked. Only this
    /// vCPU clears the flag, and the host sets it only while this vCPU does not run.
    pub fn was_stopped(&self) -> bool {
        self.info.is_some_and(|info| {
            let word = info.tsc_shift_and_flags.load(Ordering::Relaxed);
            if word & STOPPED != 0 {
                info.tsc_shift_and_flags
                    .store(word & !STOPPED, Ordering::Relaxed);
            }
            word & STOPPED != 0
        })
    }

    /// TSC ticks as nanoseconds.
    pub fn ticks_to_ns(&self, ticks: u64) -> u64 {
        self.info.map_or(self.assumed, scale).ns(ticks)
    }
}

fn scale(info: &TimeInfo) -> Scale {
    Scale {
        mul: info.tsc_to_system_mul.load(Ordering::Relaxed),
        shift: info.tsc_shift_and_flags.load(Ordering::Relaxed) as i8,
    }
}

fn rdtsc() -> u64 {
    // SAFETY: every x86_64 CPU has both; the fence keeps the reading in its place.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// Whether the host is KVM and has a paravirtual feature (Linux
/// Documentation/virt/kvm/x86/cpuid.rst).
pub fn has_kvm_feature(feature: u32) -> bool {
    let signature = ring0::cpuid(KVM_SIGNATURE_LEAF);
    signature[1..] == [0x4b4d_564b, 0x564b_4d56, 0x4d]
        && ring0::cpuid(KVM_FEATURES_LEAF)[0] & feature != 0
}
