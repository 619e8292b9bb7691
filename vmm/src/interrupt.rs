//! How a device interrupts its guest, and how the guest rings a device: message-signalled
//! vectors with their router, and doorbells.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// Address and data of one message-signalled interrupt (PCI 3.0 §6.8.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// Guest-physical address the message is written to.
    pub address: u64,
    /// The value that is written.
    pub data: u32,
}

/// Allocates interrupt routes and keeps them in step with what the guest programs.
///
/// The real one is KVM's GSI routing table with an irqfd per vector; tests use a fake.
pub trait MsiRouter: Send + Sync {
    /// Reserve a route. Writing to the returned eventfd raises the interrupt once the
    /// route has a message; before that the signal is lost.
    fn allocate(&self) -> io::Result<MsiRoute>;

    /// Give `route` a message (`Some`, it may fire) or take it away (`None`, masked).
    fn set(&self, route: &MsiRoute, message: Option<MsiMessage>) -> io::Result<()>;
}

/// One reserved interrupt route.
#[derive(Debug, Clone)]
pub struct MsiRoute {
    /// KVM's global system interrupt number.
    pub gsi: u32,
    /// Signalled to raise the interrupt.
    pub trigger: Arc<EventFd>,
}

/// Turns guest writes to an address into signals of an eventfd, without leaving the kernel.
///
/// The real one is KVM's ioeventfd (any access width, no data match: api.rst
/// `KVM_IOEVENTFD`, length 0); tests use a fake. A doorbell is an optimisation: a write that
/// exits to us all the same is handed to the device, which rings the same eventfd.
pub trait Doorbells: Send + Sync {
    /// From now on a guest write to `address` (guest-physical) signals `bell`.
    fn register(&self, address: u64, bell: &EventFd) -> io::Result<()>;

    /// Undo [`Doorbells::register`] with the same arguments.
    fn unregister(&self, address: u64, bell: &EventFd) -> io::Result<()>;
}
