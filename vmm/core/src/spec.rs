//! What a guest is made of. The same from a TOML file, from flags and from the datastore.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::compat::CpuFeatures;
use crate::mac::Mac;

/// Most virtual processors of a guest; their APIC ids fit the 8 bits of the MADT entries.
pub const CPUS_MAX: u32 = 64;
/// Least memory of a guest: below it no kernel and its initramfs find room.
pub const MEMORY_MIB_MIN: u64 = 16;
/// Most memory of a guest: 46 bits of guest-physical addresses are everywhere.
pub const MEMORY_MIB_MAX: u64 = 64 << 20;
/// Size of the huge pages that `hugepages` takes.
pub const HUGE_PAGE_MIB: u64 = 2;
/// Most disks and network cards together: the slots of the PCI bus but two.
pub const DEVICES_MAX: usize = 29;
/// Longest kernel command line, in bytes.
pub const CMDLINE_BYTES_MAX: usize = 2000;

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Its name, for messages.
    pub name: String,
    /// Virtual processors.
    #[serde(default = "one")]
    pub cpus: u32,
    /// Memory, in MiB.
    #[serde(default = "default_memory_mib")]
    pub memory_mib: u64,
    /// Path of its kernel: a bzImage or an ELF image.
    pub kernel: String,
    /// Path of its initramfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<String>,
    /// Kernel command line.
    #[serde(default)]
    pub cmdline: String,
    /// The most that its processors may be able to do; all that the host can when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_features: Option<CpuFeatures>,
    /// Back its memory with huge pages reserved by the host's administrator.
    #[serde(default)]
    pub hugepages: bool,
    /// Disks, in the order in which the guest sees them.
    #[serde(default, rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSpec>,
    /// Network cards, in the order in which the guest sees them.
    #[serde(default, rename = "net", skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<NetSpec>,
}

fn one() -> u32 {
    1
}

fn default_memory_mib() -> u64 {
    512
}

fn yes() -> bool {
    true
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// Path of its image.
    pub path: String,
    /// Format of the image. Never guessed: a guest could write another format's header.
    #[serde(default)]
    pub format: DiskFormat,
    /// Refuse the guest's writes.
    #[serde(default)]
    pub readonly: bool,
    /// Go around the host's page cache.
    #[serde(default = "yes")]
    pub direct: bool,
}

/// Format of a disk image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The bytes of the disk.
    #[default]
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// The tap of the host that it is plugged into.
    pub tap: String,
    /// Its address.
    pub mac: Mac,
}

/// Why a spec cannot be a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No name.
    #[error("the guest has no name; give it one of letters, digits and - (64 at most)")]
    Name,
    /// Processors out of range.
    #[error("{0} processors cannot be had; a guest has 1 to {CPUS_MAX}")]
    Cpus(u32),
    /// Memory out of range.
    #[error(
        "{0} MiB of memory cannot be had; a guest has {MEMORY_MIB_MIN} to {MEMORY_MIB_MAX} MiB"
    )]
    Memory(u64),
    /// Memory that does not end with a huge page.
    #[error(
        "{0} MiB of memory are no whole number of huge pages; a guest with hugepages has an even \
         number of MiB"
    )]
    OddMemory(u64),
    /// No kernel.
    #[error("the guest has no kernel; name a bzImage or an ELF image")]
    Kernel,
    /// The command line does not fit.
    #[error("the kernel command line has {0} bytes; {CMDLINE_BYTES_MAX} fit")]
    CmdlineLength(usize),
    /// The command line holds a byte that a kernel would stop at.
    #[error("the kernel command line holds a character that is not printable ASCII")]
    CmdlineText,
    /// Too many devices.
    #[error("{0} disks and network cards are too many; {DEVICES_MAX} fit")]
    Devices(usize),
    /// One image, two disks.
    #[error("the disk {0} is there twice; a writable image belongs to one disk")]
    DiskTwice(String),
    /// One tap, two cards.
    #[error("the tap {0} is there twice; each network card needs its own")]
    TapTwice(String),
    /// One address, two cards.
    #[error("the MAC address {0} is there twice; each network card needs its own")]
    MacTwice(Mac),
}

impl Spec {
    /// Check everything that can be checked without looking at a host.
    pub fn validate(&self) -> Result<(), SpecError> {
        if !is_name(&self.name) {
            return Err(SpecError::Name);
        }
        if !(1..=CPUS_MAX).contains(&self.cpus) {
            return Err(SpecError::Cpus(self.cpus));
        }
        if !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&self.memory_mib) {
            return Err(SpecError::Memory(self.memory_mib));
        }
        if self.hugepages && !self.memory_mib.is_multiple_of(HUGE_PAGE_MIB) {
            return Err(SpecError::OddMemory(self.memory_mib));
        }
        if self.kernel.is_empty() {
            return Err(SpecError::Kernel);
        }
        if self.cmdline.len() > CMDLINE_BYTES_MAX {
            return Err(SpecError::CmdlineLength(self.cmdline.len()));
        }
        if !self
            .cmdline
            .bytes()
            .all(|b| b == b' ' || b.is_ascii_graphic())
        {
            return Err(SpecError::CmdlineText);
        }
        self.validate_devices()
    }

    fn validate_devices(&self) -> Result<(), SpecError> {
        let devices = self.disks.len() + self.nets.len();
        if devices > DEVICES_MAX {
            return Err(SpecError::Devices(devices));
        }
        let mut paths = BTreeSet::new();
        for disk in &self.disks {
            if !paths.insert(&disk.path) {
                return Err(SpecError::DiskTwice(disk.path.clone()));
            }
        }
        let (mut taps, mut macs) = (BTreeSet::new(), BTreeSet::new());
        for net in &self.nets {
            if !taps.insert(&net.tap) {
                return Err(SpecError::TapTwice(net.tap.clone()));
            }
            if !macs.insert(net.mac) {
                return Err(SpecError::MacTwice(net.mac));
            }
        }
        Ok(())
    }
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec;

    use super::*;

    fn spec() -> Spec {
        Spec {
            name: "web1".to_string(),
            cpus: 2,
            memory_mib: 512,
            kernel: "vmlinuz".to_string(),
            initramfs: None,
            cmdline: "console=ttyS0".to_string(),
            cpu_features: None,
            hugepages: false,
            disks: vec![],
            nets: vec![],
        }
    }

    fn refused(change: impl FnOnce(&mut Spec)) -> SpecError {
        let mut spec = spec();
        change(&mut spec);
        spec.validate().unwrap_err()
    }

    #[test]
    fn a_plain_guest_is_fine() {
        assert_eq!(spec().validate(), Ok(()));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(refused(|s| s.name = "a/b".to_string()), SpecError::Name);
        assert_eq!(refused(|s| s.cpus = 0), SpecError::Cpus(0));
        assert_eq!(refused(|s| s.memory_mib = 1), SpecError::Memory(1));
        let odd = |s: &mut Spec| (s.memory_mib, s.hugepages) = (127, true);
        assert_eq!(refused(odd), SpecError::OddMemory(127));
        assert_eq!(refused(|s| s.kernel.clear()), SpecError::Kernel);
        assert_eq!(
            refused(|s| s.cmdline = "a\0b".to_string()),
            SpecError::CmdlineText
        );
        let disk = DiskSpec {
            path: "d".to_string(),
            format: DiskFormat::Raw,
            readonly: false,
            direct: true,
        };
        let twice = refused(|s| s.disks = vec![disk.clone(), disk]);
        assert_eq!(twice, SpecError::DiskTwice("d".to_string()));
    }
}
