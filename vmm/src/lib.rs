//! The hypervisor: one process per guest on Linux KVM.

pub mod acpi;
pub mod api;
mod aside;
pub mod boot;
pub mod bus;
pub mod check;
pub mod cli;
pub mod codec;
pub mod console;
mod counters;
pub mod devices;
pub mod drive;
pub mod error;
pub mod events;
pub mod guest;
pub mod interrupt;
pub mod kvm;
pub mod layout;
pub mod lease;
pub mod machine;
pub mod memory;
pub mod migration;
pub mod notice;
pub mod pci;
mod sampling;
mod slim;
pub mod vcpu;
