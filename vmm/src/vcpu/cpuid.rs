//! What the guest's processors say they are: what KVM supports, cut down to a baseline, with
//! each processor's place in the topology.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};
use vmm_core::compat::{CpuFeatures, CpuidLeaf, FEATURES};

use crate::kvm::KvmError;

/// Feature bits that the guest may see in one CPUID leaf; leaves without a mask pass as they
/// are. The cluster makes these from what all its hosts have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafMask {
    /// The leaf (`eax`).
    pub function: u32,
    /// The subleaf (`ecx`); 0 where there is none.
    pub index: u32,
    /// Bits of `eax`, `ebx`, `ecx` and `edx` that stay.
    pub keep: [u32; 4],
}

// Leaf 1 (Intel SDM vol. 2, CPUID).
const FEATURE_TSC_DEADLINE: u32 = 1 << 24;
const FEATURE_HYPERVISOR: u32 = 1 << 31;
const FEATURE_HTT: u32 = 1 << 28;
// AMX (Intel SDM vol. 2, CPUID leaves 7 and 0xd): the features, and the state they bring.
const AMX_7_0_EDX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
const AMX_7_1_EAX: u32 = 1 << 21;
const AMX_7_1_EDX: u32 = 1 << 8;
const XCR0_TILES: u32 = 1 << 17 | 1 << 18;
/// Leaves 0xb and 0x1f: kinds of topology level.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;
/// Entries that we may add to KVM's.
const ADDED_MAX: usize = 8;

/// What KVM can give on this host.
pub fn supported(kvm: &Kvm) -> Result<CpuId, KvmError> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES - ADDED_MAX)
        .map_err(KvmError::request("ask KVM which processor features it has"))
}

/// Which subleaf it is; KVM writes what it likes into the index of leaves that have none.
fn subleaf(entry: &kvm_cpuid_entry2) -> u32 {
    if entry.flags & kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0 {
        return 0;
    }
    entry.index
}

/// The same, as it is compared with other hosts'.
pub fn leaves(entries: &[kvm_cpuid_entry2]) -> Vec<CpuidLeaf> {
    let leaves = entries.iter().map(|entry| CpuidLeaf {
        function: entry.function,
        index: subleaf(entry),
        registers: [entry.eax, entry.ebx, entry.ecx, entry.edx],
    });
    leaves.collect()
}

/// What cuts a host's features down to `features`.
pub fn masks(features: CpuFeatures) -> Vec<LeafMask> {
    let mut masks: Vec<LeafMask> = Vec::new();
    for ((function, index, register), bits) in FEATURES.into_iter().zip(features.registers()) {
        let known = masks
            .iter_mut()
            .find(|mask| (mask.function, mask.index) == (function, index));
        if let Some(mask) = known {
            mask.keep[register] = bits;
        } else {
            let mut keep = [u32::MAX; 4];
            keep[register] = bits;
            masks.push(LeafMask {
                function,
                index,
                keep,
            });
        }
    }
    masks
}

/// The CPUID of processor `index` of `cpus`: one package, a core each, no threads.
pub fn of_processor(supported: &CpuId, index: u32, cpus: u32, masks: &[LeafMask]) -> CpuId {
    let mut entries = supported.as_slice().to_vec();
    for leaf in [0xb, 0x1f] {
        give_topology_leaf(&mut entries, leaf, index, cpus);
    }
    for entry in &mut entries {
        for mask in masks {
            if (mask.function, mask.index) == (entry.function, subleaf(entry)) {
                entry.eax &= mask.keep[0];
                entry.ebx &= mask.keep[1];
                entry.ecx &= mask.keep[2];
                entry.edx &= mask.keep[3];
            }
        }
        hide_amx(entry);
        place(entry, index, cpus);
    }
    CpuId::from_entries(&entries).unwrap_or_else(|_| supported.clone())
}

/// Replace KVM's (host's) topology leaf by the guest's, where the processor has it at all.
fn give_topology_leaf(entries: &mut Vec<kvm_cpuid_entry2>, leaf: u32, index: u32, cpus: u32) {
    let Some(first) = entries.iter().position(|entry| entry.function == leaf) else {
        return;
    };
    entries.retain(|entry| entry.function != leaf);
    let level = |subleaf: u32, kind: u32, shift: u32, count: u32| kvm_cpuid_entry2 {
        function: leaf,
        index: subleaf,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | subleaf,
        edx: index,
        ..Default::default()
    };
    let levels = [
        level(0, LEVEL_THREAD, 0, 1),
        level(1, LEVEL_CORE, apic_id_bits(cpus), cpus),
        level(2, 0, 0, 0),
    ];
    entries.splice(first..first, levels);
}

/// Bits of an APIC id that tell the cores of the package apart.
fn apic_id_bits(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

/// The tiles' state does not fit the 4 KiB of `KVM_GET_XSAVE` (api.rst, `KVM_GET_XSAVE2`), and
/// KVM runs them only for processes that asked for it. Some versions list the features all
/// the same.
fn hide_amx(entry: &mut kvm_cpuid_entry2) {
    match (entry.function, entry.index) {
        (7, 0) => entry.edx &= !AMX_7_0_EDX,
        (7, 1) => {
            entry.eax &= !AMX_7_1_EAX;
            entry.edx &= !AMX_7_1_EDX;
        }
        (0xd, 0) => entry.eax &= !XCR0_TILES,
        (0xd, 17 | 18) | (0x1d | 0x1e, _) => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        _ => {}
    }
}

fn place(entry: &mut kvm_cpuid_entry2, index: u32, cpus: u32) {
    match entry.function {
        1 => {
            let logical = cpus.next_power_of_two().min(255);
            entry.ebx = entry.ebx & 0xffff | logical << 16 | index << 24;
            entry.ecx |= FEATURE_TSC_DEADLINE | FEATURE_HYPERVISOR;
            if cpus > 1 {
                entry.edx |= FEATURE_HTT;
            } else {
                entry.edx &= !FEATURE_HTT;
            }
        }
        // Cache sharing: no cache is shared by threads; the package has `cpus` cores.
        4 if entry.eax & 0x1f != 0 => {
            let cores = (cpus.next_power_of_two() - 1).min(63);
            entry.eax = entry.eax & 0x3fff | cores << 26;
        }
        // AMD: size of an APIC id and number of cores less one.
        0x8000_0008 => {
            entry.ecx = entry.ecx & !0xffff | apic_id_bits(cpus) << 12 | (cpus - 1);
        }
        // AMD: caches shared by one.
        0x8000_001d => entry.eax &= !(0xfff << 14),
        // AMD: extended APIC id; core id, one thread each; one node.
        0x8000_001e => {
            entry.eax = index;
            entry.ebx = index;
            entry.ecx = 0;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vmm_core::compat::missing_features;

    use super::*;

    fn leaf(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        }
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|entry| (entry.function, entry.index) == (function, index))
            .unwrap()
    }

    #[test]
    fn a_mask_takes_features_away() {
        let supported = CpuId::from_entries(&[leaf(7)]).unwrap();
        let mask = LeafMask {
            function: 7,
            index: 0,
            keep: [1, 2, 3, 4],
        };
        let seven = find(&of_processor(&supported, 0, 1, &[mask]), 7, 0);
        assert_eq!([seven.eax, seven.ebx, seven.ecx, seven.edx], [1, 2, 3, 4]);
    }

    #[test]
    fn no_guest_sees_tiles() {
        let tile = kvm_cpuid_entry2 {
            index: 17,
            ..leaf(0xd)
        };
        let supported = CpuId::from_entries(&[leaf(7), leaf(0xd), tile, leaf(0x1d)]).unwrap();
        let cpuid = of_processor(&supported, 0, 1, &[]);
        assert_eq!(find(&cpuid, 7, 0).edx & 1 << 24, 0);
        assert_eq!(find(&cpuid, 0xd, 0).eax & 1 << 18, 0);
        assert_eq!(find(&cpuid, 0xd, 0).eax & 0b111, 0b111);
        assert_eq!(
            (find(&cpuid, 0xd, 17).eax, find(&cpuid, 0x1d, 0).ebx),
            (0, 0)
        );
    }

    #[test]
    fn a_host_cut_down_to_what_a_guest_has_seen_shows_just_that() {
        let supported = CpuId::from_entries(&[leaf(1), leaf(7), leaf(0x8000_0001)]).unwrap();
        let lesser = LeafMask {
            function: 7,
            index: 0,
            keep: [1, 0xf0, 0, 5],
        };
        let shown = leaves(of_processor(&supported, 0, 1, &[lesser]).as_slice());
        let again = of_processor(&supported, 0, 1, &masks(CpuFeatures::of(&shown)));
        let seven = find(&again, 7, 0);
        assert_eq!([seven.ebx, seven.ecx, seven.edx], [0xf0, 0, 5]);
        assert!(missing_features(&leaves(again.as_slice()), &shown).is_empty());
    }

    proptest! {
        #[test]
        fn every_processor_has_its_own_place(cpus in 1..=64u32) {
            let supported = CpuId::from_entries(&[leaf(1), leaf(0xb), leaf(0x8000_0008)]).unwrap();
            for index in 0..cpus {
                let cpuid = of_processor(&supported, index, cpus, &[]);
                prop_assert_eq!(find(&cpuid, 1, 0).ebx >> 24, index);
                let core = find(&cpuid, 0xb, 1);
                prop_assert_eq!((core.edx, core.ebx), (index, cpus));
                prop_assert!(index >> core.eax == 0, "one package");
                prop_assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx & 0xff, cpus - 1);
            }
        }
    }
}
