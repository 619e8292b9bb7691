//! How a queue or a change of the configuration interrupts the guest.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use crate::devices::virtio::QueueInterrupt;
use crate::pci::msix::Msix;

/// Bit of the ISR status (virtio 1.2 §4.1.4.5): a queue was used.
pub const ISR_QUEUE: u8 = 1;
/// Bit of the ISR status: the configuration changed.
pub const ISR_CONFIG: u8 = 2;

/// Raises a vector that the driver may change at any time.
pub struct VectorInterrupt {
    pub msix: Arc<Msix>,
    pub vector: Arc<AtomicU16>,
    pub isr: Arc<AtomicU8>,
    pub isr_bit: u8,
    pub generation: Option<Arc<AtomicU8>>,
}

impl QueueInterrupt for VectorInterrupt {
    fn used(&self) -> io::Result<()> {
        if let Some(generation) = &self.generation {
            generation.fetch_add(1, Ordering::AcqRel);
        }
        self.isr.fetch_or(self.isr_bit, Ordering::AcqRel);
        self.msix.raise(self.vector.load(Ordering::Acquire))
    }
}
