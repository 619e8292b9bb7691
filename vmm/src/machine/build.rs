//! Puts a machine together.

use std::io;
use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuFd};
use vmm_core::spec::Spec;

use super::{Backends, Built, Machine};
use crate::acpi::{self, AcpiError};
use crate::boot::{self, BootError, Entry};
use crate::bus::Buses;
use crate::counters::Gauges;
use crate::devices::power::{KeyboardReset, POWER_PORTS, PanicPort, PowerRegisters};
use crate::devices::serial::{SERIAL_PORTS, SerialPort};
use crate::devices::virtio::block::{Block, MAX_QUEUES};
use crate::devices::virtio::net::Net;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::transport::{VirtioPci, Wiring};
use crate::error::one_line;
use crate::kvm::{KvmDoorbells, KvmError, VirtualMachine};
use crate::layout::{
    ECAM, ECAM_LEN, KEYBOARD_PORT, PANIC_PORT, PCI_WINDOW, POWER_BUTTON_IRQ, POWER_PORT,
    SERIAL_IRQ, SERIAL_PORT,
};
use crate::notice::Reports;
use crate::pci::root::PORTS as PCI_PORTS;
use crate::pci::{PciError, PciRoot};
use crate::threads;
use crate::vcpu::Vcpu;
use crate::vcpu::cpuid::{self, LeafMask};
use crate::vcpu::state::{Known, StateError, set_msrs};

/// Why a machine cannot be built, started, saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The kernel.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// The PCI bus.
    #[error("{}", one_line(.0))]
    Pci(#[from] PciError),
    /// A processor's state.
    #[error(transparent)]
    Vcpu(#[from] StateError),
    /// A device.
    #[error("cannot build the {what}: {source}")]
    Device {
        /// Which.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The host has fewer processors than KVM lets a guest have.
    #[error(
        "{wanted} processors cannot be had: KVM on this host gives a guest {max}; ask for fewer"
    )]
    Cpus {
        /// What the spec wants.
        wanted: u32,
        /// What KVM gives.
        max: usize,
    },
    /// Another layout of state.
    #[error(
        "the machine state has version {0}, this program knows 1; use the same release on both sides"
    )]
    StateVersion(u16),
    /// The state of another machine.
    #[error("the saved machine has {saved} processors, this one {here}; use the same spec")]
    StateCpus {
        /// Processors here.
        here: usize,
        /// Processors in the state.
        saved: usize,
    },
    /// The serial port's state.
    #[error("cannot restore the serial port: {0}")]
    Serial(#[source] io::Error),
}

fn device(what: &'static str) -> impl Fn(io::Error) -> MachineError {
    move |source| MachineError::Device { what, source }
}

/// Model-specific registers that a kernel expects firmware to have set.
const MSRS: [(u32, u64); 2] = [
    // IA32_MTRR_DEF_TYPE (Intel SDM vol. 3, §12.11.2.1): MTRRs on, memory write-back unless a range
    // says otherwise.
    (0x2ff, 1 << 11 | 6),
    // IA32_MISC_ENABLE (Intel SDM vol. 4, table 2-2): fast strings.
    (0x1a0, 1),
];

impl Built {
    /// A machine without a kernel: something to restore into. The threads of its devices wait until
    /// they are needed.
    pub fn new(
        kvm: &Kvm,
        spec: &Spec,
        backends: &Backends,
        masks: &[LeafMask],
        reports: &Reports,
    ) -> Result<Self, MachineError> {
        threads::keep(device_threads(spec)).map_err(device("threads of the devices"))?;
        build(kvm, spec, backends, masks, reports, None)
    }

    /// A machine at the first instruction of its kernel.
    pub fn boot(
        kvm: &Kvm,
        spec: &Spec,
        backends: &Backends,
        masks: &[LeafMask],
        reports: &Reports,
    ) -> Result<Self, MachineError> {
        let rsdp = acpi::write(&backends.memory, spec.cpus)?;
        let entry = boot::load(spec, &backends.memory, rsdp)?;
        build(kvm, spec, backends, masks, reports, Some(entry))
    }
}

fn build(
    kvm: &Kvm,
    spec: &Spec,
    backends: &Backends,
    masks: &[LeafMask],
    reports: &Reports,
    entry: Option<Entry>,
) -> Result<Built, MachineError> {
    let max = kvm.get_max_vcpus();
    if spec.cpus as usize > max {
        let wanted = spec.cpus;
        return Err(MachineError::Cpus { wanted, max });
    }
    let vm = VirtualMachine::new(kvm, backends.memory.clone())?;
    let pin = |pin| vm.router.pin(pin);
    let serial = SerialPort::new(
        pin(SERIAL_IRQ).map_err(device("serial port"))?,
        backends.console.drained().map_err(device("serial port"))?,
        backends.console.output(),
    )
    .map_err(device("serial port"))?;
    let power_button = pin(POWER_BUTTON_IRQ).map_err(device("power button"))?;
    let (pci, mut gauges) = add_devices(spec, backends, &vm)?;
    let buses = Arc::new(wire(&pci, serial.clone(), reports));
    let supported = cpuid::supported(kvm)?;
    let shown = cpuid::of_processor(&supported, 0, spec.cpus, masks);
    let mut vcpus = Vec::new();
    let mut msrs = None;
    for index in 0..spec.cpus {
        let request = KvmError::request;
        let fd = vm
            .fd
            .create_vcpu(u64::from(index))
            .map_err(request("create a processor"))?;
        let cpuid = cpuid::of_processor(&supported, index, spec.cpus, masks);
        fd.set_cpuid2(&cpuid)
            .map_err(request("set the CPUID of a processor"))?;
        set_msrs(&fd, &MSRS)?;
        set_apic(&fd)?;
        if let (Some(entry), 0) = (entry, index) {
            set_registers(&fd, entry, backends)?;
        }
        let known = Known::learn(kvm, &fd, cpuid, msrs.as_ref())?;
        msrs.get_or_insert_with(|| known.msrs.clone());
        let vcpu = Vcpu::spawn(index, fd, known, buses.clone(), reports.clone());
        vcpus.push(vcpu.map_err(device("thread of a processor"))?);
    }
    gauges.vcpus = vcpus.iter().map(Vcpu::gauge).collect();
    backends.console.plug(serial.clone());
    Ok(Built(Machine {
        vcpus,
        pci,
        serial,
        power_button,
        gauges,
        shown: cpuid::leaves(shown.as_slice()),
        vm,
    }))
}

/// How many threads its devices begin with: one for each queue, and one that announces.
fn device_threads(spec: &Spec) -> usize {
    let disk_queues = (spec.cpus as usize).clamp(1, usize::from(MAX_QUEUES));
    spec.disks.len() * disk_queues + spec.nets.len() * 3 + 1
}

/// Slots go in the order of the spec: disks, network cards, entropy. With them what counts in them.
fn add_devices(
    spec: &Spec,
    backends: &Backends,
    vm: &VirtualMachine,
) -> Result<(PciRoot, Gauges), MachineError> {
    let wiring = Wiring {
        memory: vm.memory.clone(),
        router: vm.router.clone(),
        doorbells: Arc::new(KvmDoorbells(vm.fd.clone())),
    };
    let pci = PciRoot::new(PCI_WINDOW);
    let mut gauges = Gauges::default();
    for (n, disk) in backends.disks.iter().enumerate() {
        let name = format!("disk{n}");
        let block = Block::new(&name, disk.clone(), spec.cpus as u16, &name);
        gauges.disks.push(block.counters());
        let function = VirtioPci::new(Box::new(block), wiring.clone()).map_err(device("disk"))?;
        pci.add(Box::new(function))?;
    }
    for (n, (tap, mac)) in backends.taps.iter().enumerate() {
        let tap = tap.try_clone().map_err(device("network card"))?;
        let net = Net::new(&format!("net{n}"), *mac, tap);
        gauges.nets.push(net.counters());
        let function =
            VirtioPci::new(Box::new(net), wiring.clone()).map_err(device("network card"))?;
        pci.add(Box::new(function))?;
    }
    let rng = VirtioPci::new(Box::new(Rng::new()), wiring).map_err(device("entropy device"))?;
    pci.add(Box::new(rng))?;
    Ok((pci, gauges))
}

fn wire(pci: &PciRoot, serial: SerialPort, reports: &Reports) -> Buses {
    let mut buses = Buses::default();
    let ports = &mut buses.ports;
    ports.attach(u64::from(SERIAL_PORT), SERIAL_PORTS, serial);
    ports.attach(
        u64::from(POWER_PORT),
        POWER_PORTS,
        PowerRegisters(reports.clone()),
    );
    ports.attach(u64::from(KEYBOARD_PORT), 1, KeyboardReset(reports.clone()));
    ports.attach(u64::from(PANIC_PORT), 1, PanicPort(reports.clone()));
    ports.attach(u64::from(PCI_PORTS.0), u64::from(PCI_PORTS.1), pci.ports());
    let mmio = &mut buses.mmio;
    mmio.attach(ECAM, ECAM_LEN, pci.ecam());
    mmio.attach(
        u64::from(PCI_WINDOW.base),
        u64::from(PCI_WINDOW.bytes),
        pci.mmio(),
    );
    buses
}

/// The local APIC as it is: setting it makes KVM take the new processor into its map of
/// interrupt targets, without which the first INIT is lost on some versions.
fn set_apic(fd: &VcpuFd) -> Result<(), MachineError> {
    let request = KvmError::request("set a processor's local APIC");
    let lapic = fd.get_lapic().map_err(&request)?;
    Ok(fd.set_lapic(&lapic).map_err(&request)?)
}

fn set_registers(fd: &VcpuFd, entry: Entry, backends: &Backends) -> Result<(), MachineError> {
    let request = KvmError::request("set a processor's registers");
    let mut sregs = fd.get_sregs().map_err(&request)?;
    boot::registers::special(entry, &mut sregs, &backends.memory)?;
    fd.set_sregs(&sregs).map_err(&request)?;
    fd.set_regs(&boot::registers::general(entry))
        .map_err(&request)?;
    Ok(())
}
