//! Virtio 1.2 devices: what a device is to the transport that carries it.
//!
//! A device is born idle. [`VirtioDevice::start`] hands it its queues (the driver said
//! `DRIVER_OK`, or the guest resumes), [`VirtioDevice::stop`] takes them back with nothing
//! in flight (pause, reset, migration). Between the two the device runs on threads of its
//! own; outside of them it has only plain state, which [`VirtioDevice::save`] copies.

pub mod block;
pub mod chain;
pub mod common;
pub mod completions;
pub mod net;
pub mod rng;
pub mod tap;
#[cfg(test)]
pub(crate) mod testing;
pub mod transport;
pub mod worker;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestMemory;

/// A running queue: its rings, the doorbell the guest rings and the bell we ring back.
pub struct ActiveQueue {
    /// Position in the device's queue list.
    pub index: u16,
    /// The rings as the driver configured them; validated by the transport.
    pub queue: Queue,
    /// Signalled when the guest notifies this queue (an ioeventfd).
    pub doorbell: EventFd,
    /// Raises this queue's interrupt.
    pub interrupt: Arc<dyn QueueInterrupt>,
}

/// Raises the used-buffer interrupt of one queue (virtio 1.2 §4.1.5.1).
pub trait QueueInterrupt: Send + Sync {
    /// Tell the driver that the used ring moved.
    fn used(&self) -> io::Result<()>;
}

/// Feature bits of a device with these features of its own, and those that all devices have.
fn offer(own: &[u32]) -> u64 {
    let common = [
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
    ];
    let bits = common.iter().chain(own);
    bits.fold(0, |features, bit| features | 1 << bit)
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// What a device needs to run.
pub struct Activation {
    /// Guest-physical memory; writes through it are seen by dirty tracking.
    pub memory: Arc<GuestMemory>,
    /// The features that the driver accepted.
    pub features: u64,
    /// One entry for each queue that the driver enabled.
    pub queues: Vec<ActiveQueue>,
    /// Raises the configuration-change interrupt.
    pub config_changed: Arc<dyn QueueInterrupt>,
}

/// A virtio device behind any transport (virtio 1.2 §2).
pub trait VirtioDevice: Send {
    /// Device ID of virtio 1.2 §5.
    fn device_type(&self) -> u32;

    /// Largest size of each queue, in descriptors.
    fn queue_sizes(&self) -> &[u16];

    /// Feature bits on offer, `VIRTIO_F_VERSION_1` included.
    fn features(&self) -> u64;

    /// The device-specific configuration space; none of it can be written.
    fn config(&self) -> Vec<u8>;

    /// Take the queues and begin to serve them.
    fn start(&mut self, activation: Activation) -> io::Result<()>;

    /// [`VirtioDevice::stop`] will be called soon: let everything that takes time begin.
    fn ask_to_stop(&self) {}

    /// Stop serving, finish or put back what is in flight, return the queues as they now
    /// stand. Returns an empty list when the device was not running. After it returns the
    /// device touches neither guest memory nor its backend.
    fn stop(&mut self) -> Vec<ActiveQueue>;

    /// The device back to its state at power-on; called while stopped.
    fn reset(&mut self) {}

    /// Copy the device-specific state; called while stopped, or for a draft. Versioned by the device.
    fn save(&self) -> Vec<u8>;

    /// Pour in a state that [`VirtioDevice::save`] produced; called while stopped.
    fn restore(&mut self, state: &[u8]) -> io::Result<()>;

    /// The guest has just arrived on this host: tell the outside world (a network device
    /// sends its MAC address). Called once, after the device was started.
    fn announce(&mut self) -> io::Result<()> {
        Ok(())
    }
}
