//! The 256 bytes of a type-0 configuration space, and which of them the guest may change.
//!
//! BAR sizing needs no special case: the low bits of a BAR are not writable, so a guest that
//! writes all ones reads the size mask back (PCI 3.0 §6.2.5.1).

use std::io;
use std::ops::Range;

/// Bytes of conventional configuration space.
pub const CONFIG_BYTES: usize = 256;
/// Bytes of configuration space that ECAM gives each function; those past
/// [`CONFIG_BYTES`] read as zero (no extended capabilities).
pub const ECAM_FUNCTION_BYTES: u64 = 4096;
/// Base address registers of a type-0 function.
pub const BARS: usize = 6;

const VENDOR: usize = 0x00;
const DEVICE: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const BAR0: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAPABILITY: usize = 0x40;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_INTX_OFF: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// What a function is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// PCI vendor ID.
    pub vendor: u16,
    /// PCI device ID.
    pub device: u16,
    /// Subsystem ID (the subsystem vendor is `vendor`).
    pub subsystem: u16,
    /// Revision.
    pub revision: u8,
    /// Base class, subclass, programming interface.
    pub class: [u8; 3],
}

/// A type-0 configuration space.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
    writable: [u8; CONFIG_BYTES],
    bar_bytes: [u32; BARS],
    next_capability: usize,
    last_link: usize,
}

impl ConfigSpace {
    /// A space with `identity` and no BARs or capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            bar_bytes: [0; BARS],
            next_capability: FIRST_CAPABILITY,
            last_link: CAPABILITIES,
        };
        space.put(VENDOR, &identity.vendor.to_le_bytes());
        space.put(DEVICE, &identity.device.to_le_bytes());
        space.put(REVISION, &[identity.revision]);
        let [base, sub, interface] = identity.class;
        space.put(CLASS, &[interface, sub, base]);
        space.put(SUBSYSTEM_VENDOR, &identity.vendor.to_le_bytes());
        space.put(SUBSYSTEM, &identity.subsystem.to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_OFF;
        space.allow(COMMAND, &command.to_le_bytes());
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Give the function a 32-bit memory BAR of `bytes` (a power of two, at least 16).
    ///
    /// # Panics
    /// When `index` or `bytes` is not a possible BAR; both are constants of the device.
    pub fn add_bar(&mut self, index: usize, bytes: u32) {
        assert!(bytes.is_power_of_two() && bytes >= 16, "not a BAR size");
        self.bar_bytes[index] = bytes;
        self.allow(BAR0 + 4 * index, &(!(bytes - 1)).to_le_bytes());
    }

    /// Size of BAR `index` in bytes; 0 when the function has none.
    pub fn bar_bytes(&self, index: usize) -> u32 {
        self.bar_bytes.get(index).copied().unwrap_or(0)
    }

    /// Place BAR `index` (what firmware does) and let the function answer there.
    pub fn place_bar(&mut self, index: usize, address: u32) {
        self.put(BAR0 + 4 * index, &address.to_le_bytes());
        let command = self.u16_at(COMMAND) | COMMAND_MEMORY | COMMAND_MASTER;
        self.put(COMMAND, &command.to_le_bytes());
    }

    /// Where BAR `index` answers now; `None` when the guest switched memory decoding off.
    pub fn bar_range(&self, index: usize) -> Option<Range<u64>> {
        let bytes = u64::from(self.bar_bytes(index));
        if bytes == 0 || self.u16_at(COMMAND) & COMMAND_MEMORY == 0 {
            return None;
        }
        let base = u64::from(self.u32_at(BAR0 + 4 * index) & !0xf);
        Some(base..base + bytes)
    }

    /// Append a capability: `body` follows the two header bytes, `writable` has a one bit
    /// for each bit of `body` that the guest may change. Returns its offset.
    ///
    /// # Panics
    /// When the space is full: the capabilities of a device are fixed at build time.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next_capability;
        let bytes = (2 + body.len()).next_multiple_of(4);
        assert!(at + bytes <= CONFIG_BYTES, "configuration space is full");
        self.put(self.last_link, &[at as u8]);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        let status = self.u16_at(STATUS) | STATUS_CAPABILITIES;
        self.put(STATUS, &status.to_le_bytes());
        self.last_link = at + 1;
        self.next_capability = at + bytes;
        at
    }

    /// The guest reads `data.len()` bytes at `offset`; bytes past the end read as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = usize::try_from(at)
                .ok()
                .and_then(|at| self.bytes.get(at).copied())
                .unwrap_or(0);
        }
    }

    /// The guest writes `data` at `offset`; bits that are not writable keep their value.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for (value, at) in data.iter().zip(offset..) {
            let Some(at) = usize::try_from(at).ok().filter(|at| *at < CONFIG_BYTES) else {
                return;
            };
            let mask = self.writable[at];
            self.bytes[at] = (self.bytes[at] & !mask) | (value & mask);
        }
    }

    /// The little-endian 16-bit value at `offset` (a constant of the device).
    pub fn u16_at(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// The little-endian 32-bit value at `offset` (a constant of the device).
    pub fn u32_at(&self, offset: usize) -> u32 {
        u32::from(self.u16_at(offset)) | u32::from(self.u16_at(offset + 2)) << 16
    }

    /// Set bytes regardless of what the guest may write.
    pub fn put(&mut self, offset: usize, value: &[u8]) {
        self.bytes[offset..offset + value.len()].copy_from_slice(value);
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// Copy the guest-visible bytes.
    pub fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Pour in what [`ConfigSpace::save`] copied. Fails when a bit that no guest can change
    /// differs: then the state belongs to another device.
    pub fn restore(&mut self, saved: &[u8]) -> io::Result<()> {
        let fits = saved.len() == CONFIG_BYTES
            && saved
                .iter()
                .zip(&self.bytes)
                .zip(&self.writable)
                .enumerate()
                .all(|(at, ((new, old), mask))| {
                    // Placing BARs at build time is ours, not the guest's; they may differ.
                    (BAR0..BAR0 + 4 * BARS).contains(&at) || (new ^ old) & !mask == 0
                });
        if !fits {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the saved PCI configuration belongs to a different device",
            ));
        }
        self.write(0, saved);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            subsystem: 2,
            revision: 1,
            class: [1, 0, 0],
        });
        space.add_bar(0, 0x8000);
        space.add_capability(0x11, &[1, 0, 2, 3], &[0, 0x80]);
        space
    }

    #[test]
    fn sizing_a_bar_yields_its_mask() {
        let mut space = space();
        space.place_bar(0, 0xe000_8000);
        assert_eq!(space.bar_range(0), Some(0xe000_8000..0xe001_0000));
        space.write(0x10, &[0xff; 4]);
        assert_eq!(space.u32_at(0x10), 0xffff_8000);
        space.write(0x14, &[0xff; 4]);
        assert_eq!(space.u32_at(0x14), 0);
        space.write(0x04, &[0, 0]);
        assert_eq!(space.bar_range(0), None);
    }

    #[test]
    fn capabilities_are_linked() {
        let mut space = space();
        let second = space.add_capability(0x09, &[0; 3], &[]);
        assert_eq!(space.bytes[CAPABILITIES], 0x40);
        assert_eq!(usize::from(space.bytes[0x41]), second);
        assert_eq!(space.bytes[second + 1], 0);
    }

    #[test]
    fn restore_refuses_another_device() {
        let mut saved = space().save();
        saved[2] ^= 1;
        assert!(space().restore(&saved).is_err());
        assert!(space().restore(&saved[..10]).is_err());
    }

    proptest! {
        #[test]
        fn no_access_panics_and_fixed_bits_stay(
            writes in prop::collection::vec((0u64..5000, prop::collection::vec(any::<u8>(), 0..9)), 0..64)
        ) {
            let mut space = space();
            let before = space.clone();
            for (offset, data) in &writes {
                space.write(*offset, data);
                let mut back = data.clone();
                space.read(*offset, &mut back);
            }
            for at in 0..CONFIG_BYTES {
                prop_assert_eq!((space.bytes[at] ^ before.bytes[at]) & !space.writable[at], 0);
            }
            let mut copy = before.clone();
            copy.restore(&space.save()).unwrap();
            prop_assert_eq!(copy.save(), space.save());
        }
    }
}
