//! Where things lie in the function's BAR, and the capabilities that say so (virtio 1.2 §4.1.4).
//!
//! ```text
//!   BAR 0   0x0000 common configuration     0x3000 notify, 4 bytes per queue
//!           0x1000 ISR status               0x4000 MSI-X table
//!           0x2000 device configuration     0x5000 MSI-X pending bits
//! ```

use crate::devices::virtio::common::COMMON_BYTES;
use crate::pci::config::{ConfigSpace, Identity};

const VENDOR_VIRTIO: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;
const REVISION: u8 = 1;
/// The one BAR.
pub const BAR: usize = 0;
/// Its length.
pub const BAR_BYTES: u32 = 0x8000;
/// ISR status.
pub const ISR_AT: u64 = 0x1000;
/// Device configuration.
pub const DEVICE_AT: u64 = 0x2000;
/// Notification, [`NOTIFY_BYTES`] for each queue.
pub const NOTIFY_AT: u64 = 0x3000;
/// MSI-X table.
pub const TABLE_AT: u64 = 0x4000;
/// MSI-X pending bits.
pub const PENDING_AT: u64 = 0x5000;
/// Their end.
pub const PENDING_END: u64 = 0x6000;
/// Notification of one queue.
pub const NOTIFY_BYTES: u64 = 4;

/// A capability of the vendor.
pub const VENDOR_CAPABILITY: u8 = 0x09;
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
/// Its kind: the window on the BAR.
pub const CAP_PCI_CFG: u8 = 5;

/// What the function says it is in its configuration header.
pub fn identity(device_type: u32) -> Identity {
    const NETWORK: u32 = 1;
    const BLOCK: u32 = 2;
    let class = match device_type {
        NETWORK => [0x02, 0x00, 0x00],
        BLOCK => [0x01, 0x80, 0x00],
        _ => [0xff, 0x00, 0x00],
    };
    let id = device_type as u16;
    Identity {
        vendor: VENDOR_VIRTIO,
        device: DEVICE_BASE + id,
        subsystem: DEVICE_BASE + id,
        revision: REVISION,
        class,
    }
}

/// Adds the vendor capabilities of §4.1.4; returns the offset of the window capability.
pub fn add_capabilities(config: &mut ConfigSpace, queues: u64) -> usize {
    let mut add = |kind: u8, offset: u64, length: u64, tail: &[u8], writable: &[u8]| {
        let mut body = vec![16 + tail.len() as u8, kind, BAR as u8, 0, 0, 0];
        body.extend_from_slice(&(offset as u32).to_le_bytes());
        body.extend_from_slice(&(length as u32).to_le_bytes());
        body.extend_from_slice(tail);
        config.add_capability(VENDOR_CAPABILITY, &body, writable)
    };
    add(CAP_COMMON, 0, COMMON_BYTES, &[], &[]);
    add(CAP_ISR, ISR_AT, 1, &[], &[]);
    add(CAP_DEVICE, DEVICE_AT, NOTIFY_AT - DEVICE_AT, &[], &[]);
    add(
        CAP_NOTIFY,
        NOTIFY_AT,
        NOTIFY_BYTES * queues,
        &(NOTIFY_BYTES as u32).to_le_bytes(),
        &[],
    );
    // Writable: the BAR number, offset, length and data.
    let mut writable = [0xff; 18];
    writable[..2].fill(0);
    writable[3..6].fill(0);
    add(CAP_PCI_CFG, 0, 0, &[0; 4], &writable)
}
