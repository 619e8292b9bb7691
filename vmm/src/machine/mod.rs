//! A machine, and what it may do when.
//!
//! ```text
//!   Built ──start──► Running ◄──resume────────────── Paused
//!     │                 └──stop──► Stopped ──settle──►▲
//!     └───────────────────restore─────────────────────┘
//! ```
//!
//! Each step consumes the state before it. The processors of a stopped machine stand still; its
//! devices may be busy for as long as the storage takes. A paused machine touches neither its
//! memory nor its disks, so it can be saved.

mod backends;
mod build;
pub mod state;

use std::io;

use kvm_ioctls::VcpuFd;
use vmm_core::compat::CpuidLeaf;
use vmm_sys_util::eventfd::EventFd;

use crate::counters::Gauges;
use crate::devices::serial::SerialPort;
use crate::kvm::VirtualMachine;
use crate::pci::PciRoot;
use crate::vcpu::Vcpu;
use crate::vcpu::state::{self as processor, Known, StateError, VcpuState};
pub use backends::{BackendError, Backends, DiskAccess};
pub use build::MachineError;
pub use state::{Draft, MachineState, Saving};

/// So many processors are copied or poured into sooner one by one, by whoever wants it, than their
/// threads are awake; those of all others work meanwhile.
const BY_HAND_MAX: usize = 2;

/// The parts of a machine, whatever it does. Processors come first: they go first.
struct Machine {
    vcpus: Vec<Vcpu>,
    pci: PciRoot,
    serial: SerialPort,
    power_button: EventFd,
    gauges: Gauges,
    /// What the first processor says it is; the others differ only in their place.
    shown: Vec<CpuidLeaf>,
    vm: VirtualMachine,
}

/// A complete machine that has not run.
pub struct Built(Machine);
/// A machine whose processors run.
pub struct Running(Machine);
/// A machine whose processors stand still.
pub struct Stopped(Machine);
/// A machine that stands still.
pub struct Paused(Machine);

impl Built {
    /// Let it go.
    pub fn start(self) -> Result<Running, MachineError> {
        self.0.run()?;
        Ok(Running(self.0))
    }

    /// Pour in the state of a machine that was built from the same spec. Guest memory comes
    /// another way.
    pub fn restore(self, state: MachineState) -> Result<Paused, MachineError> {
        self.0.restore(state)?;
        Ok(Paused(self.0))
    }

    /// Pour in what is known of the state beforehand: what is the same when the whole of it comes
    /// takes no time then.
    pub fn prepare(&self, draft: Draft) -> Result<(), MachineError> {
        self.0.prepare(draft)
    }

    /// Copy everything but memory.
    pub fn save(&self) -> Result<MachineState, MachineError> {
        self.0.finish_save(self.0.begin_save())
    }
}

impl Running {
    /// Stop the processors.
    pub fn stop(self) -> Stopped {
        self.0.park();
        Stopped(self.0)
    }

    /// Press the power button.
    pub fn press_power_button(&self) -> io::Result<()> {
        self.0.power_button.write(1)
    }
}

impl Stopped {
    /// Finish all device I/O.
    pub fn settle(self) -> Paused {
        self.0.pci.pause();
        Paused(self.0)
    }
}

impl Paused {
    /// Go on.
    pub fn resume(self) -> Result<Running, Box<(Self, MachineError)>> {
        match self.0.run() {
            Ok(()) => Ok(Running(self.0)),
            Err(error) => {
                self.0.pci.pause();
                Err(Box::new((self, error)))
            }
        }
    }

    /// Begin to copy everything but memory; the processors copy theirs meanwhile.
    pub fn begin_save(&self) -> Saving {
        self.0.begin_save()
    }

    /// Everything but memory.
    pub fn finish_save(&self, saving: Saving) -> Result<MachineState, MachineError> {
        self.0.finish_save(saving)
    }
}

/// What can be asked of a machine in any state.
pub trait Inspect {
    /// The kernel's side: memory, dirty log.
    fn vm(&self) -> &VirtualMachine;
    /// The processors.
    fn vcpus(&self) -> &[Vcpu];
    /// What counts in it.
    fn gauges(&self) -> Gauges;
    /// What the guest's processors were shown of their features.
    fn shown(&self) -> Vec<CpuidLeaf>;
    /// What will be a part of its state and seldom changes.
    fn draft(&self) -> Draft;
    /// The guest has just arrived on this host: let devices tell the outside world.
    fn announce(&self) -> Result<(), MachineError>;
}

macro_rules! inspect {
    ($($state:ty),*) => {$(
        impl Inspect for $state {
            fn vm(&self) -> &VirtualMachine {
                &self.0.vm
            }

            fn vcpus(&self) -> &[Vcpu] {
                &self.0.vcpus
            }

            fn gauges(&self) -> Gauges {
                self.0.gauges.clone()
            }

            fn shown(&self) -> Vec<CpuidLeaf> {
                self.0.shown.clone()
            }

            fn draft(&self) -> Draft {
                self.0.draft()
            }

            fn announce(&self) -> Result<(), MachineError> {
                Ok(self.0.pci.announce()?)
            }
        }
    )*};
}

inspect!(Built, Running, Paused);

impl Machine {
    fn run(&self) -> Result<(), MachineError> {
        self.pci.resume()?;
        self.vcpus.iter().for_each(Vcpu::run);
        Ok(())
    }

    fn park(&self) {
        self.vcpus.iter().for_each(Vcpu::ask_to_park);
        self.vcpus.iter().for_each(Vcpu::wait_parked);
    }

    fn draft(&self) -> Draft {
        Draft {
            cpuids: self.vcpus.iter().map(Vcpu::cpuid).collect(),
            pci: self.pci.save(),
        }
    }

    fn prepare(&self, draft: Draft) -> Result<(), MachineError> {
        let identify = |cpuid: Vec<_>| {
            move |fd: &VcpuFd, known: &mut Known| processor::identify(fd, known, &cpuid)
        };
        self.each_vcpu(draft.cpuids.into_iter().map(identify))?;
        Ok(self.pci.restore(&draft.pci)?)
    }

    fn begin_save(&self) -> Saving {
        let others = self.vcpus.iter().skip(BY_HAND_MAX);
        Saving(others.map(|vcpu| vcpu.have_done(save)).collect())
    }

    fn finish_save(&self, Saving(others): Saving) -> Result<MachineState, MachineError> {
        let vcpus = self.vcpus.iter().take(BY_HAND_MAX);
        let vcpus: Result<Vec<_>, _> = vcpus.map(|vcpu| vcpu.act(save)).collect();
        let mut vcpus = vcpus?;
        vcpus.extend(state::collect(others)?);
        let platform = state::save_platform(&self.vm.fd)?;
        Ok(MachineState {
            version: state::STATE_VERSION,
            platform,
            serial: self.serial.save(),
            pci: self.pci.save(),
            vcpus,
        })
    }

    fn restore(&self, state: MachineState) -> Result<(), MachineError> {
        state.check(self.vcpus.len())?;
        let restore = |state: VcpuState| {
            move |fd: &VcpuFd, known: &mut Known| processor::restore(fd, known, &state)
        };
        self.each_vcpu(state.vcpus.into_iter().map(restore))?;
        state::restore_platform(&self.vm.fd, &state.platform)?;
        self.serial
            .restore(&state.serial)
            .map_err(MachineError::Serial)?;
        Ok(self.pci.restore(&state.pci)?)
    }

    /// Do to each parked processor what is due to it.
    fn each_vcpu<Act>(&self, acts: impl Iterator<Item = Act>) -> Result<(), MachineError>
    where
        Act: FnOnce(&VcpuFd, &mut Known) -> Result<(), StateError> + Send + 'static,
    {
        let mut acts = self.vcpus.iter().zip(acts);
        let by_hand: Vec<_> = acts.by_ref().take(BY_HAND_MAX).collect();
        let others = acts.map(|(vcpu, act)| vcpu.have_done(act)).collect();
        let mut by_hand = by_hand.into_iter();
        by_hand.try_for_each(|(vcpu, act)| vcpu.act(act))?;
        state::collect(others).map(drop)
    }
}

fn save(fd: &VcpuFd, known: &mut Known) -> Result<VcpuState, StateError> {
    processor::save(fd, known)
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Processors and device threads stop before anything they use goes.
        self.park();
        self.pci.pause();
    }
}
