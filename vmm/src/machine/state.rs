//! The state of a whole machine but its memory, as it travels to another process.

use std::sync::mpsc::Receiver;
use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    kvm_clock_data, kvm_cpuid_entry2, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use vmm_sys_util::errno::Error as Errno;

use super::MachineError;
use crate::devices::serial::SerialState;
use crate::kvm::KvmError;
use crate::pci::PciState;
use crate::vcpu::state::{StateError, VcpuState};

/// Layout of [`MachineState`] as this release writes it.
pub const STATE_VERSION: u16 = 1;

/// Longest stop that the guest's clock makes good by itself when it goes on; a longer one
/// means that the two hosts disagree about the time of day.
const CLOCK_GAP_MAX_NS: u64 = 60_000_000_000;

/// Everything but memory. Encode it with [`crate::codec`].
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// [`STATE_VERSION`] of the writer.
    pub version: u16,
    /// Interrupt controllers, timer, clock.
    pub platform: PlatformState,
    /// Serial port.
    pub serial: SerialState,
    /// The PCI bus and its devices.
    pub pci: PciState,
    /// Processors.
    pub vcpus: Vec<VcpuState>,
}

/// What of a machine's state seldom changes and takes long to pour in: what its processors are,
/// where its devices lie and what interrupts they raise. As it was at some moment of its running.
#[derive(Debug, Serialize, Deserialize)]
pub struct Draft {
    /// What each processor says it is.
    pub cpuids: Vec<Vec<kvm_cpuid_entry2>>,
    /// The PCI bus and its devices; queues may be anywhere.
    pub pci: PciState,
}

/// The state of processors that is being copied.
#[derive(Debug)]
pub struct Saving(pub(super) Vec<Receiver<Result<VcpuState, StateError>>>);

/// What KVM emulates besides processors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlatformState {
    /// First PIC, second PIC, IOAPIC.
    pub irqchips: Vec<kvm_irqchip>,
    /// Interval timer.
    pub pit: kvm_pit_state2,
    /// The guest's clock.
    pub clock: ClockState,
}

/// kvmclock at the moment of saving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// Nanoseconds that the guest has seen.
    pub guest_ns: u64,
    /// The host's time of day then, in nanoseconds; none where KVM does not tell.
    pub realtime_ns: Option<u64>,
}

impl MachineState {
    /// Does it fit a machine with so many processors?
    pub fn check(&self, cpus: usize) -> Result<(), MachineError> {
        if self.version != STATE_VERSION {
            return Err(MachineError::StateVersion(self.version));
        }
        if self.vcpus.len() != cpus {
            return Err(MachineError::StateCpus {
                here: cpus,
                saved: self.vcpus.len(),
            });
        }
        Ok(())
    }
}

/// Wait for one answer of each processor.
pub fn collect<T>(replies: Vec<Receiver<Result<T, StateError>>>) -> Result<Vec<T>, MachineError> {
    let answers = replies
        .into_iter()
        .map(|reply| reply.recv().unwrap_or(Err(StateError::Gone)));
    Ok(answers.collect::<Result<_, _>>()?)
}

fn request(act: &'static str) -> impl Fn(Errno) -> MachineError {
    move |source| MachineError::Kvm(KvmError::Request { act, source })
}

/// Copy what KVM emulates besides processors.
pub fn save_platform(vm: &VmFd) -> Result<PlatformState, MachineError> {
    let chips = [
        KVM_IRQCHIP_PIC_MASTER,
        KVM_IRQCHIP_PIC_SLAVE,
        KVM_IRQCHIP_IOAPIC,
    ];
    let irqchips = chips.map(|chip_id| {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        vm.get_irqchip(&mut chip).map(|()| chip)
    });
    let irqchips: Result<Vec<_>, _> = irqchips.into_iter().collect();
    let clock = vm.get_clock().map_err(request("read the guest's clock"))?;
    Ok(PlatformState {
        irqchips: irqchips.map_err(request("read the interrupt controllers"))?,
        pit: vm.get_pit2().map_err(request("read the interval timer"))?,
        clock: ClockState {
            guest_ns: clock.clock,
            realtime_ns: Some(realtime_ns(&clock)),
        },
    })
}

/// Pour it in; processors come first.
pub fn restore_platform(vm: &VmFd, state: &PlatformState) -> Result<(), MachineError> {
    for chip in &state.irqchips {
        vm.set_irqchip(chip)
            .map_err(request("set the interrupt controllers"))?;
    }
    vm.set_pit2(&state.pit)
        .map_err(request("set the interval timer"))?;
    restore_clock(vm, state.clock).map_err(request("set the guest's clock"))
}

/// The time of day at the moment of `clock`. KVM tells it where the host's processors keep one time;
/// elsewhere we look ourselves, some microseconds later.
fn realtime_ns(clock: &kvm_clock_data) -> u64 {
    if clock.flags & KVM_CLOCK_REALTIME != 0 {
        return clock.realtime;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as u64)
}

/// The guest's clock goes on as if it had never stopped, so its time of day stays right,
/// unless the hosts' own clocks make no sense together.
fn restore_clock(vm: &VmFd, state: ClockState) -> Result<(), Errno> {
    let here = vm.get_clock()?;
    let elapsed_ns = match state.realtime_ns {
        Some(then) => realtime_ns(&here).saturating_sub(then),
        None => 0,
    };
    let elapsed_ns = if elapsed_ns > CLOCK_GAP_MAX_NS {
        0
    } else {
        elapsed_ns
    };
    vm.set_clock(&kvm_clock_data {
        clock: state.guest_ns.saturating_add(elapsed_ns),
        ..Default::default()
    })
}
