//! Can a guest of one host run on another? Asked before any byte of memory travels.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// One leaf of CPUID (Intel SDM vol. 2, CPUID).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidLeaf {
    /// EAX of the question.
    pub function: u32,
    /// ECX of the question.
    pub index: u32,
    /// EAX, EBX, ECX and EDX of the answer.
    pub registers: [u32; 4],
}

const REGISTER_NAMES: [&str; 4] = ["EAX", "EBX", "ECX", "EDX"];

/// Registers in which a set bit promises a feature: function, index, register.
pub const FEATURES: [(u32, u32, usize); 9] = [
    (1, 0, 2),
    (1, 0, 3),
    (7, 0, 1),
    (7, 0, 2),
    (7, 0, 3),
    (7, 1, 0),
    (0xd, 1, 0),
    (0x8000_0001, 0, 2),
    (0x8000_0001, 0, 3),
];

/// Bits that say how the machine is set up now, not what it can do: OSXSAVE and the
/// hypervisor bit, more than one processor, OSPKE.
const NOT_FEATURES: [(u32, usize, u32); 3] =
    [(1, 2, 1 << 27 | 1 << 31), (1, 3, 1 << 28), (7, 2, 1 << 4)];

/// Names of the features that guests miss most; others are named by their place.
const NAMES: [(u32, usize, u32, &str); 20] = [
    (1, 2, 0, "sse3"),
    (1, 2, 9, "ssse3"),
    (1, 2, 12, "fma"),
    (1, 2, 19, "sse4_1"),
    (1, 2, 20, "sse4_2"),
    (1, 2, 23, "popcnt"),
    (1, 2, 25, "aes"),
    (1, 2, 26, "xsave"),
    (1, 2, 28, "avx"),
    (1, 2, 30, "rdrand"),
    (7, 1, 3, "bmi1"),
    (7, 1, 5, "avx2"),
    (7, 1, 8, "bmi2"),
    (7, 1, 16, "avx512f"),
    (7, 1, 17, "avx512dq"),
    (7, 1, 18, "rdseed"),
    (7, 1, 19, "adx"),
    (7, 1, 29, "sha_ni"),
    (7, 1, 30, "avx512bw"),
    (7, 1, 31, "avx512vl"),
];

/// The processor features that the guest was shown and this host does not have.
pub fn missing_features(shown: &[CpuidLeaf], here: &[CpuidLeaf]) -> Vec<String> {
    let register = |leaves: &[CpuidLeaf], function, index, register: usize| {
        let leaf = leaves
            .iter()
            .find(|leaf| leaf.function == function && leaf.index == index);
        leaf.map_or(0, |leaf| leaf.registers[register])
    };
    let mut missing = Vec::new();
    for (function, index, which) in FEATURES {
        let not_features = NOT_FEATURES
            .iter()
            .find(|(f, r, _)| *f == function && *r == which && index == 0)
            .map_or(0, |(.., bits)| *bits);
        let lacks = register(shown, function, index, which)
            & !register(here, function, index, which)
            & !not_features;
        for bit in (0..32).filter(|bit| lacks >> bit & 1 == 1) {
            missing.push(name(function, index, which, bit));
        }
    }
    missing
}

fn name(function: u32, index: u32, register: usize, bit: u32) -> String {
    let known = NAMES
        .iter()
        .find(|(f, r, b, _)| *f == function && *r == register && *b == bit && index == 0);
    match known {
        Some((.., name)) => String::from(*name),
        None => format!(
            "CPUID {function:#x}.{index} {} bit {bit}",
            REGISTER_NAMES[register]
        ),
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn leaf(function: u32, registers: [u32; 4]) -> CpuidLeaf {
        CpuidLeaf {
            function,
            index: 0,
            registers,
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let shown = [
            leaf(7, [0, 1 << 5 | 1 << 16, 0, 0]),
            leaf(1, [0, 0, 1 << 27, 1 << 25]),
        ];
        let here = [leaf(7, [0, 1 << 5, 0, 0])];
        let missing = missing_features(&shown, &here);
        assert_eq!(missing, vec!["CPUID 0x1.0 EDX bit 25", "avx512f"]);
    }

    proptest! {
        #[test]
        fn a_host_can_run_its_own_guests_and_those_of_a_lesser_one(bits: [u32; 4], fewer: [u32; 4]) {
            let here = [leaf(1, bits), leaf(7, bits)];
            let lesser = core::array::from_fn(|n| bits[n] & fewer[n]);
            let shown = [leaf(1, lesser), leaf(7, lesser)];
            prop_assert!(missing_features(&here, &here).is_empty());
            prop_assert!(missing_features(&shown, &here).is_empty());
        }
    }
}
