//! The kernel's side of the hypervisor: opening KVM and making a virtual machine.

mod dirty;
mod router;

use std::io;
use std::sync::Arc;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VmFd};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::eventfd::EventFd;

use crate::aside;
use crate::interrupt::Doorbells;
use crate::layout::{KVM_IDENTITY_MAP, KVM_TSS};
use crate::memory::GuestMemory;

pub use dirty::{DirtyLog, PAGES_PER_WORD};
pub use router::KvmRouter;

/// Version of the KVM interface that has not changed since 2007 (api.rst, 4.1).
const API_VERSION: i32 = 12;

/// What a guest cannot do without, and its name in api.rst.
const NEEDED: [(Cap, &str); 8] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
];

/// Why KVM is of no use.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// No device file.
    #[error(
        "there is no /dev/kvm: this machine has no hardware virtualisation, it is switched off in \
         the firmware, or the module is not loaded; try `modprobe kvm_amd` or `modprobe kvm_intel`"
    )]
    Absent,
    /// Not for us.
    #[error("/dev/kvm may not be opened by this user; add it to the group kvm, or run as root")]
    Permission,
    /// Some other reason.
    #[error("cannot open /dev/kvm: {0}")]
    Open(Errno),
    /// A very old or very new kernel.
    #[error("/dev/kvm speaks version {0} of its interface; {API_VERSION} is needed")]
    Version(i32),
    /// A capability is missing.
    #[error("/dev/kvm lacks {0}; a newer kernel has it")]
    Lacks(&'static str),
    /// A request failed.
    #[error("cannot {act}: {source}")]
    Request {
        /// What was to be done.
        act: &'static str,
        /// What the kernel said.
        source: Errno,
    },
}

impl KvmError {
    /// For `map_err`: the request `act` failed.
    pub fn request(act: &'static str) -> impl Fn(Errno) -> Self {
        move |source| Self::Request { act, source }
    }
}

/// Open /dev/kvm and see that it has what guests need.
pub fn open() -> Result<Kvm, KvmError> {
    // Whether they can be had or not.
    let _ = aside::prepare();
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Absent,
        libc::EACCES | libc::EPERM => KvmError::Permission,
        _ => KvmError::Open(error),
    })?;
    if kvm.get_api_version() != API_VERSION {
        return Err(KvmError::Version(kvm.get_api_version()));
    }
    match NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(KvmError::Lacks(name)),
        None => Ok(kvm),
    }
}

/// A virtual machine with interrupt controllers, timer and memory, but no processors.
pub struct VirtualMachine {
    /// Its file descriptor.
    pub fd: Arc<VmFd>,
    /// Its interrupt routes.
    pub router: Arc<KvmRouter>,
    /// Its memory.
    pub memory: Arc<GuestMemory>,
}

impl VirtualMachine {
    /// Make one around `memory`.
    pub fn new(kvm: &Kvm, memory: Arc<GuestMemory>) -> Result<Self, KvmError> {
        let request = KvmError::request;
        let fd = kvm
            .create_vm()
            .map_err(request("create a virtual machine"))?;
        fd.set_identity_map_address(KVM_IDENTITY_MAP)
            .map_err(request("place KVM's identity map"))?;
        fd.set_tss_address(KVM_TSS as usize)
            .map_err(request("place KVM's task state segment"))?;
        // Before the interrupt controllers: Linux 6.18 and later defer work when those join the
        // I/O bus, and new memory would wait for that for milliseconds.
        for (slot, region) in memory.iter().enumerate() {
            let region = slot_region(slot, region, 0);
            // SAFETY: the region is mapped for as long as `memory`, which lives as long as
            // this machine; regions do not overlap.
            unsafe { fd.set_user_memory_region(region) }
                .map_err(request("give memory to the virtual machine"))?;
        }
        fd.create_irq_chip()
            .map_err(request("create the interrupt controllers"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        fd.create_pit2(pit)
            .map_err(request("create the interval timer"))?;
        let fd = Arc::new(fd);
        let router = Arc::new(KvmRouter::new(fd.clone())?);
        Ok(Self { fd, router, memory })
    }

    /// The log of the pages that its processors write.
    pub fn dirty_log(&self) -> DirtyLog {
        DirtyLog::new(self.fd.clone(), self.memory.clone())
    }
}

/// Region `region` of guest memory as KVM's slot `slot`.
fn slot_region(
    slot: usize,
    region: &GuestRegionMmap<AtomicBitmap>,
    flags: u32,
) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region {
        slot: slot as u32,
        flags,
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    }
}

/// Doorbells by ioeventfd.
pub struct KvmDoorbells(pub Arc<VmFd>);

impl Doorbells for KvmDoorbells {
    fn register(&self, address: u64, bell: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        Ok(self.0.register_ioevent(bell, &address, NoDatamatch)?)
    }

    fn unregister(&self, address: u64, bell: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        Ok(self.0.unregister_ioevent(bell, &address, NoDatamatch)?)
    }
}
