//! Everything the guest can touch besides memory and processors. One file per device.

pub mod power;
pub mod serial;
pub mod virtio;
