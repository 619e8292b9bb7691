//! The hypervisor: one process per guest on Linux KVM.

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod codec;
pub mod devices;
pub mod interrupt;
pub mod kvm;
pub mod layout;
pub mod memory;
pub mod pci;
