//! Steal time: how long this vCPU's thread stood ready but had no CPU (Linux
//! Documentation/virt/kvm/x86/msr.rst).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::abi::MAX_VCPUS;
use crate::clock::has_kvm_feature;
use crate::ring0;

const KVM_FEATURE_STEAL_TIME: u32 = 1 << 5;
const MSR_KVM_STEAL_TIME: u32 = 0x4b56_4d03;
const ENABLE: u64 = 1;

/// `kvm_steal_time`, written by the host.
#[repr(C, align(64))]
struct Shared {
    steal_ns: AtomicU64,
    version: AtomicU32,
    _rest: [AtomicU32; 13],
}

static SHARED: [Shared; MAX_VCPUS] = [const {
    Shared {
        steal_ns: AtomicU64::new(0),
        version: AtomicU32::new(0),
        _rest: [const { AtomicU32::new(0) }; 13],
    }
}; MAX_VCPUS];

/// One vCPU's steal time.
pub struct Steal(Option<&'static Shared>);

impl Steal {
    /// Switches it on, where the host has it.
    pub fn new(vcpu: usize) -> Steal {
        if !has_kvm_feature(KVM_FEATURE_STEAL_TIME) {
            return Steal(None);
        }
        let shared = &SHARED[vcpu];
        // SAFETY: the host writes to this static of its own, aligned as it must be.
        unsafe { ring0::wrmsr(MSR_KVM_STEAL_TIME, &raw const *shared as u64 | ENABLE) };
        Steal(Some(shared))
    }

    /// Whether the host tells it.
    pub fn is_told(&self) -> bool {
        self.0.is_some()
    }

    /// Nanoseconds stolen so far. One aligned word, so it needs no look at the version.
    pub fn read_ns(&self) -> u64 {
        self.0
            .map_or(0, |shared| shared.steal_ns.load(Ordering::Relaxed))
    }
}
