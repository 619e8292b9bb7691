//! Does the guest's most privileged code run on the processor, or in KVM's emulator?

use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress};

use crate::boot::{Entry, registers};
use crate::error::one_line;
use crate::kvm::VirtualMachine;
use crate::memory;

/// Where the little guest lies.
const CODE_AT: u64 = 0x10_0000;
/// `popcnt eax, eax` is an instruction that every processor with virtualisation has and KVM's
/// emulator has not; then `out 0x80, al`.
const CODE: [u8; 6] = [0xf3, 0x0f, 0xb8, 0xc0, 0xe6, 0x80];
const MEMORY_MIB: u64 = 16;
/// Returns from the guest that mean nothing, at most.
const TRIES_MAX: u32 = 16;

/// What runs ring 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ring0 {
    /// The processor.
    Runs,
    /// KVM's instruction emulator.
    Emulated,
}

/// Run the little guest.
pub fn probe(kvm: &Kvm) -> Result<Ring0, String> {
    let memory = memory::map(MEMORY_MIB, false).map_err(|error| one_line(&error))?;
    memory
        .write_slice(&CODE, GuestAddress(CODE_AT))
        .map_err(|error| error.to_string())?;
    let vm = VirtualMachine::new(kvm, Arc::new(memory)).map_err(|error| one_line(&error))?;
    let entry = Entry::Pvh { rip: CODE_AT };
    let mut vcpu = vm.fd.create_vcpu(0).map_err(|error| error.to_string())?;
    let mut sregs = vcpu.get_sregs().map_err(|error| error.to_string())?;
    registers::special(entry, &mut sregs, &vm.memory).map_err(|error| one_line(&error))?;
    vcpu.set_sregs(&sregs).map_err(|error| error.to_string())?;
    vcpu.set_regs(&registers::general(entry))
        .map_err(|error| error.to_string())?;
    for _ in 0..TRIES_MAX {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(..)) => return Ok(Ring0::Runs),
            Ok(VcpuExit::InternalError) => return Ok(Ring0::Emulated),
            Ok(VcpuExit::Intr) => {}
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Ok(other) => return Err(format!("{other:?}")),
            Err(error) => return Err(error.to_string()),
        }
    }
    Err("it never got to run".to_owned())
}
