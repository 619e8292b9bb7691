//! The state of a parked processor, and the order in which KVM takes it.

use kvm_bindings::{
    CpuId, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vmm_sys_util::errno::Error as Errno;

/// Layout of [`VcpuState`] as this file writes it.
pub const STATE_VERSION: u16 = 1;

const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// `KVM_SET_MSRS` and `KVM_GET_MSRS` take no more at a time (`MAX_IO_MSRS` less a margin).
const MSRS_PER_CALL: usize = 128;

/// The state of one processor as it travels to another process.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    /// [`STATE_VERSION`] of the writer.
    pub version: u16,
    /// What the processor says it is.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Rate of its time-stamp counter; none where KVM does not say.
    pub tsc_khz: Option<u32>,
    /// Running, halted, waiting for its start-up interrupt.
    pub mp_state: kvm_mp_state,
    /// General registers.
    pub regs: kvm_regs,
    /// Segments, control registers, interrupt in flight.
    pub sregs: kvm_sregs,
    /// Floating-point and vector registers.
    pub xsave: Box<kvm_xsave>,
    /// Extended control registers.
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    pub debugregs: kvm_debugregs,
    /// Model-specific registers: index and value.
    pub msrs: Vec<(u32, u64)>,
    /// Local APIC.
    pub lapic: kvm_lapic_state,
    /// Exceptions, interrupts and NMIs on their way.
    pub events: kvm_vcpu_events,
}

// Intel SDM vol. 3, §2.5: VMX enabled; AMD APM vol. 2, §3.1.7: SVM enabled.
const CR4_VMXE: u64 = 1 << 13;
const EFER_SVME: u64 = 1 << 12;

impl VcpuState {
    /// Does the guest run virtual machines of its own? Their state is not part of this.
    pub fn is_nested(&self) -> bool {
        has_guests(&self.sregs)
    }
}

fn has_guests(sregs: &kvm_sregs) -> bool {
    sregs.cr4 & CR4_VMXE != 0 || sregs.efer & EFER_SVME != 0
}

/// The same of a processor that may run, as far as it can be told.
pub fn is_nested(processor: &VcpuFd) -> bool {
    processor.get_sregs().is_ok_and(|sregs| has_guests(&sregs))
}

/// Why a processor's state cannot be copied or poured in.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another layout.
    #[error(
        "the processor state has version {0}, this program knows {STATE_VERSION}; \
         use the same release on both sides"
    )]
    Version(u16),
    /// KVM refuses.
    #[error("cannot {act} of a processor: {source}")]
    Kvm {
        /// What was to be done.
        act: &'static str,
        /// Why not.
        source: Errno,
    },
    /// A register does not exist here.
    #[error(
        "this host's KVM does not take model-specific register {0:#x}; choose a host with a newer \
         kernel or, for a migration, with the same kind of processor"
    )]
    Msr(u32),
    /// The lists do not fit KVM's structures.
    #[error("the processor state is damaged: too many {0}")]
    TooMany(&'static str),
    /// The processor's thread is gone.
    #[error("a processor has ended")]
    Gone,
}

fn kvm(act: &'static str) -> impl Fn(Errno) -> StateError {
    move |source| StateError::Kvm { act, source }
}

/// What is known of a processor without asking KVM.
pub struct Known {
    /// What it was told that it is. KVM adds what the guest has switched on, on the other side too.
    pub cpuid: CpuId,
    /// Its model-specific registers: those that KVM lists, less those that it does not give.
    pub msrs: Arc<[u32]>,
    /// Rate of its time-stamp counter; none where KVM does not say.
    pub tsc_khz: Option<u32>,
}

impl Known {
    /// Of a processor that was told `cpuid` and has not run; `msrs` are another's of its machine.
    pub fn learn(
        kvm_fd: &Kvm,
        fd: &VcpuFd,
        cpuid: CpuId,
        msrs: Option<&Arc<[u32]>>,
    ) -> Result<Self, StateError> {
        let msrs = match msrs {
            Some(msrs) => msrs.clone(),
            None => readable_msrs(kvm_fd, fd)?,
        };
        Ok(Self {
            cpuid,
            msrs,
            tsc_khz: fd.get_tsc_khz().ok().filter(|khz| *khz > 0),
        })
    }
}

/// Copy the state. `KVM_GET_MP_STATE` goes first: it delivers pending INIT and SIPI, which
/// changes the rest.
pub fn save(fd: &VcpuFd, known: &Known) -> Result<VcpuState, StateError> {
    let mp_state = fd.get_mp_state().map_err(kvm("read the run state"))?;
    Ok(VcpuState {
        version: STATE_VERSION,
        cpuid: known.cpuid.as_slice().to_vec(),
        tsc_khz: known.tsc_khz,
        mp_state,
        regs: fd.get_regs().map_err(kvm("read the registers"))?,
        sregs: fd.get_sregs().map_err(kvm("read the special registers"))?,
        xsave: Box::new(fd.get_xsave().map_err(kvm("read the vector registers"))?),
        xcrs: fd.get_xcrs().map_err(kvm("read the extended registers"))?,
        debugregs: fd
            .get_debug_regs()
            .map_err(kvm("read the debug registers"))?,
        lapic: fd.get_lapic().map_err(kvm("read the local APIC"))?,
        msrs: read_msrs(fd, &known.msrs)?,
        events: fd.get_vcpu_events().map_err(kvm("read the events"))?,
    })
}

/// Tell the processor what it is, unless it knows: nothing else that is poured in takes as long.
pub fn identify(
    fd: &VcpuFd,
    known: &mut Known,
    cpuid: &[kvm_cpuid_entry2],
) -> Result<(), StateError> {
    if known.cpuid.as_slice() == cpuid {
        return Ok(());
    }
    let cpuid = CpuId::from_entries(cpuid).map_err(|_| StateError::TooMany("leaves"))?;
    fd.set_cpuid2(&cpuid).map_err(kvm("set the CPUID"))?;
    known.cpuid = cpuid;
    Ok(())
}

/// Pour a state in.
pub fn restore(fd: &VcpuFd, known: &mut Known, state: &VcpuState) -> Result<(), StateError> {
    if state.version != STATE_VERSION {
        return Err(StateError::Version(state.version));
    }
    identify(fd, known, &state.cpuid)?;
    restore_tsc_rate(fd, known, state.tsc_khz)?;
    fd.set_mp_state(state.mp_state)
        .map_err(kvm("set the run state"))?;
    fd.set_regs(&state.regs).map_err(kvm("set the registers"))?;
    fd.set_sregs(&state.sregs)
        .map_err(kvm("set the special registers"))?;
    // SAFETY: the structure has KVM_SET_XSAVE's fixed size; KVM needs more only for features
    // that a process must ask for first (arch_prctl ARCH_REQ_XCOMP_GUEST_PERM), which we do not
    // (see `cpuid`).
    unsafe { fd.set_xsave(&state.xsave) }.map_err(kvm("set the vector registers"))?;
    fd.set_xcrs(&state.xcrs)
        .map_err(kvm("set the extended registers"))?;
    fd.set_debug_regs(&state.debugregs)
        .map_err(kvm("set the debug registers"))?;
    set_msrs(fd, &state.msrs)?;
    fd.set_lapic(&state.lapic)
        .map_err(kvm("set the local APIC"))?;
    // The local APIC forgets its deadline when it is set.
    let is_deadline = |(msr, value): &&(u32, u64)| *msr == MSR_TSC_DEADLINE && *value != 0;
    let deadline = state.msrs.iter().find(is_deadline);
    set_msrs(fd, deadline.map(std::slice::from_ref).unwrap_or_default())?;
    fd.set_vcpu_events(&state.events)
        .map_err(kvm("set the events"))
}

/// Only a rate that differs is set: not every KVM can scale it.
fn restore_tsc_rate(
    fd: &VcpuFd,
    known: &mut Known,
    wanted_khz: Option<u32>,
) -> Result<(), StateError> {
    let Some(khz) = wanted_khz.filter(|khz| known.tsc_khz != Some(*khz)) else {
        return Ok(());
    };
    fd.set_tsc_khz(khz)
        .map_err(kvm("set the rate of the time-stamp counter"))?;
    known.tsc_khz = Some(khz);
    Ok(())
}

fn readable_msrs(kvm_fd: &Kvm, fd: &VcpuFd) -> Result<Arc<[u32]>, StateError> {
    let list = kvm_fd
        .get_msr_index_list()
        .map_err(kvm("list the model-specific registers"))?;
    let entries = read_msrs(fd, list.as_slice())?;
    Ok(entries.into_iter().map(|(msr, _)| msr).collect())
}

/// KVM stops at the first register that it cannot read; step over it.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, StateError> {
    let mut values = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let wanted: Vec<_> = rest
            .iter()
            .take(MSRS_PER_CALL)
            .map(|&index| msr(index, 0))
            .collect();
        let mut msrs = Msrs::from_entries(&wanted).map_err(|_| StateError::TooMany("MSRs"))?;
        let read = fd
            .get_msrs(&mut msrs)
            .map_err(kvm("read the model-specific registers"))?;
        let got = &msrs.as_slice()[..read];
        values.extend(got.iter().map(|entry| (entry.index, entry.data)));
        let skip = usize::from(read < wanted.len());
        rest = &rest[read + skip..];
    }
    Ok(values)
}

/// Set model-specific registers: index and value. One that KVM does not take is an error only if it
/// is to hold something: both sides of a migration list registers of features that the guest was
/// never shown.
pub fn set_msrs(fd: &VcpuFd, values: &[(u32, u64)]) -> Result<(), StateError> {
    let mut rest = values;
    while !rest.is_empty() {
        let wanted: Vec<_> = rest
            .iter()
            .take(MSRS_PER_CALL)
            .map(|&(index, value)| msr(index, value))
            .collect();
        let msrs = Msrs::from_entries(&wanted).map_err(|_| StateError::TooMany("MSRs"))?;
        let written = fd
            .set_msrs(&msrs)
            .map_err(kvm("set the model-specific registers"))?;
        if written == wanted.len() {
            rest = &rest[written..];
            continue;
        }
        let (refused, value) = rest[written];
        if value != 0 && !holds(fd, refused, value) {
            return Err(StateError::Msr(refused));
        }
        rest = &rest[written + 1..];
    }
    Ok(())
}

/// A read-only register that has the right value already is as good as set.
fn holds(fd: &VcpuFd, index: u32, value: u64) -> bool {
    read_msrs(fd, &[index]).is_ok_and(|read| read == [(index, value)])
}

fn msr(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}
