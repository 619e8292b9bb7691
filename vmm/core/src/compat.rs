//! Can a guest of one host run on another? Asked before any byte of memory travels.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

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

/// Registers in which a set bit promises a feature: function, index, register. In this order
/// [`CpuFeatures`] are written down; new ones go to the end.
pub const FEATURES: [(u32, u32, usize); 10] = [
    (1, 0, 2),
    (1, 0, 3),
    (7, 0, 1),
    (7, 0, 2),
    (7, 0, 3),
    (7, 1, 0),
    (0xd, 1, 0),
    (0x8000_0001, 0, 2),
    (0x8000_0001, 0, 3),
    // What XSAVE can save: a guest that has more cannot be restored.
    (0xd, 0, 0),
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

/// What a processor can do: the feature bits of [`FEATURES`], in their order. Written as
/// hexadecimal words joined by `-`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuFeatures([u32; FEATURES.len()]);

impl CpuFeatures {
    /// Those that CPUID tells of.
    pub fn of(leaves: &[CpuidLeaf]) -> Self {
        Self(FEATURES.map(|(function, index, register)| {
            let leaf = leaves
                .iter()
                .find(|leaf| (leaf.function, leaf.index) == (function, index));
            let bits = leaf.map_or(0, |leaf| leaf.registers[register]);
            bits & !not_features(function, index, register)
        }))
    }

    /// Those that both have.
    #[must_use]
    pub fn common(self, other: Self) -> Self {
        Self(core::array::from_fn(|n| self.0[n] & other.0[n]))
    }

    /// Those that either has.
    #[must_use]
    pub fn any(self, other: Self) -> Self {
        Self(core::array::from_fn(|n| self.0[n] | other.0[n]))
    }

    /// Those that `here` lacks, by name.
    pub fn missing(self, here: Self) -> Vec<String> {
        let mut missing = Vec::new();
        for (n, (function, index, register)) in FEATURES.into_iter().enumerate() {
            let lacks = self.0[n] & !here.0[n];
            let bits = (0..32).filter(|bit| lacks >> bit & 1 == 1);
            missing.extend(bits.map(|bit| name(function, index, register, bit)));
        }
        missing
    }

    /// The bits of each register of [`FEATURES`], in their order.
    pub fn registers(self) -> [u32; FEATURES.len()] {
        self.0
    }
}

impl fmt::Display for CpuFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(|word| format!("{word:x}")).collect();
        f.write_str(&words.join("-"))
    }
}

/// Text that is not [`CpuFeatures`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no set of processor features, which has {count} hexadecimal words joined by -; \
     `vmm cpu-features` prints this host's",
    count = FEATURES.len()
)]
pub struct NotCpuFeatures(String);

impl FromStr for CpuFeatures {
    type Err = NotCpuFeatures;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words = text.split('-').map(|word| u32::from_str_radix(word, 16));
        let words: Result<Vec<u32>, _> = words.collect();
        let words = words.ok().and_then(|words| words.try_into().ok());
        words.map(Self).ok_or_else(|| NotCpuFeatures(text.into()))
    }
}

impl Serialize for CpuFeatures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CpuFeatures {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn not_features(function: u32, index: u32, register: usize) -> u32 {
    let known = NOT_FEATURES
        .iter()
        .find(|(f, r, _)| *f == function && *r == register && index == 0);
    known.map_or(0, |(.., bits)| *bits)
}

/// The processor features that the guest was shown and this host does not have.
pub fn missing_features(shown: &[CpuidLeaf], here: &[CpuidLeaf]) -> Vec<String> {
    CpuFeatures::of(shown).missing(CpuFeatures::of(here))
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

    #[test]
    fn features_are_written_and_read_again_and_nothing_else_is_taken_for_them() {
        let features = CpuFeatures::of(&[leaf(7, [0, 1 << 5 | 1 << 16, 0, 0])]);
        let text = format!("{features}");
        assert_eq!(text, "0-0-10020-0-0-0-0-0-0-0");
        assert_eq!(text.parse(), Ok(features));
        for wrong in [
            "",
            "0-0",
            "0-0-0-0-0-0-0-0-0-avx",
            "0-0-0-0-0-0-0-0-0-100000000",
        ] {
            let error = wrong.parse::<CpuFeatures>().unwrap_err();
            assert!(format!("{error}").contains("vmm cpu-features"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn both_hosts_have_what_is_common_and_nothing_more_could_be(a: [u32; 10], b: [u32; 10]) {
            let (a, b) = (CpuFeatures(a), CpuFeatures(b));
            let common = a.common(b);
            prop_assert!(common.missing(a).is_empty() && common.missing(b).is_empty());
            prop_assert_eq!(a.missing(common), a.missing(b));
        }

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
