//! The hypervisor: one process per guest on Linux KVM.

pub mod bus;
pub mod codec;
pub mod devices;
pub mod interrupt;
pub mod memory;
pub mod pci;
