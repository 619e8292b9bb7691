//! MSI-X (PCI 3.0 §6.8.2): the vector table and pending bits of one function.
//!
//! ```text
//!             raise                        unmask
//!   live ───────────────► irqfd    masked ────────► live (+ irqfd if pending)
//!   masked ─────────────► pending
//! ```
//!
//! A vector is *live* when MSI-X is enabled and neither the function nor the vector is
//! masked. Masking is decided here, in software, so the router hears only of new messages.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::debug;

use crate::interrupt::{MsiMessage, MsiRoute, MsiRouter};

/// Bytes of one table entry.
pub const ENTRY_BYTES: u64 = 16;
/// Vectors that fit the table page of our functions.
pub const MAX_VECTORS: usize = 256;
/// MSI-X capability ID.
pub const CAPABILITY_ID: u8 = 0x11;

const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
const VECTOR_MASKED: u32 = 1;

/// Body of the MSI-X capability and its writable bits, for
/// [`super::ConfigSpace::add_capability`].
pub fn capability(vectors: u16, bar: u32, table: u32, pba: u32) -> ([u8; 10], [u8; 2]) {
    let mut body = [0; 10];
    body[0..2].copy_from_slice(&(vectors - 1).to_le_bytes());
    body[2..6].copy_from_slice(&(table | bar).to_le_bytes());
    body[6..10].copy_from_slice(&(pba | bar).to_le_bytes());
    (body, (CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_le_bytes())
}

/// One table entry as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorState {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// The vector's own mask bit.
    pub masked: bool,
    /// Raised while not live.
    pub pending: bool,
}

/// The whole table, for save and restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// MSI-X enable bit.
    pub enabled: bool,
    /// Function mask bit.
    pub masked: bool,
    /// All vectors.
    pub vectors: Vec<VectorState>,
}

struct Vector {
    state: VectorState,
    route: MsiRoute,
    routed: Option<MsiMessage>,
}

struct Table {
    enabled: bool,
    masked: bool,
    vectors: Vec<Vector>,
}

/// The MSI-X unit of one function; shared by the vCPU that programs it and the device
/// threads that raise vectors.
pub struct Msix {
    router: Arc<dyn MsiRouter>,
    table: Mutex<Table>,
}

const POWER_ON: VectorState = VectorState {
    address: 0,
    data: 0,
    masked: true,
    pending: false,
};

impl Msix {
    /// A unit with `vectors` routes reserved from `router` (at most [`MAX_VECTORS`]).
    pub fn new(vectors: usize, router: Arc<dyn MsiRouter>) -> io::Result<Self> {
        if vectors == 0 || vectors > MAX_VECTORS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a PCI function has 1 to {MAX_VECTORS} interrupt vectors, not {vectors}"),
            ));
        }
        let vectors = (0..vectors)
            .map(|_| {
                Ok(Vector {
                    state: POWER_ON,
                    route: router.allocate()?,
                    routed: None,
                })
            })
            .collect::<io::Result<_>>()?;
        let table = Mutex::new(Table {
            enabled: false,
            masked: false,
            vectors,
        });
        Ok(Self { router, table })
    }

    /// Number of vectors.
    pub fn vectors(&self) -> usize {
        self.lock().vectors.len()
    }

    /// Raise `vector`. An unknown vector (`VIRTIO_MSI_NO_VECTOR` among them) does nothing.
    pub fn raise(&self, vector: u16) -> io::Result<()> {
        let mut table = self.lock();
        let live = table.enabled && !table.masked;
        let Some(vector) = table.vectors.get_mut(usize::from(vector)) else {
            return Ok(());
        };
        if live && !vector.state.masked {
            vector.route.trigger.write(1)
        } else {
            vector.state.pending = true;
            Ok(())
        }
    }

    /// The guest wrote the capability's message control word.
    pub fn set_control(&self, control: u16) {
        let mut table = self.lock();
        table.enabled = control & CONTROL_ENABLE != 0;
        table.masked = control & CONTROL_FUNCTION_MASK != 0;
        for index in 0..table.vectors.len() {
            self.settle(&mut table, index);
        }
    }

    /// The guest reads the vector table; only aligned 4- and 8-byte reads mean anything.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if !aligned(offset, data.len()) {
            return;
        }
        let table = self.lock();
        for (word, at) in data.chunks_exact_mut(4).zip((offset..).step_by(4)) {
            let Some(vector) = table.vectors.get((at / ENTRY_BYTES) as usize) else {
                return;
            };
            let value = match at % ENTRY_BYTES {
                0 => vector.state.address as u32,
                4 => (vector.state.address >> 32) as u32,
                8 => vector.state.data,
                _ => u32::from(vector.state.masked),
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// The guest writes the vector table.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        if !aligned(offset, data.len()) {
            return;
        }
        let mut table = self.lock();
        let first = (offset / ENTRY_BYTES) as usize;
        for (word, at) in data.chunks_exact(4).zip((offset..).step_by(4)) {
            let value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            let Some(vector) = table.vectors.get_mut((at / ENTRY_BYTES) as usize) else {
                return;
            };
            let state = &mut vector.state;
            match at % ENTRY_BYTES {
                0 => state.address = (state.address & !0xffff_ffff) | u64::from(value & !3),
                4 => state.address = (state.address & 0xffff_ffff) | u64::from(value) << 32,
                8 => state.data = value,
                _ => state.masked = value & VECTOR_MASKED != 0,
            }
        }
        self.settle(&mut table, first);
    }

    /// The guest reads the pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let table = self.lock();
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = (0..8).fold(0, |bits, bit| {
                let pending = usize::try_from(at)
                    .ok()
                    .and_then(|at| at.checked_mul(8))
                    .and_then(|first| table.vectors.get(first + bit))
                    .is_some_and(|vector| vector.state.pending);
                bits | u8::from(pending) << bit
            });
        }
    }

    /// Everything masked and empty, as at power-on.
    pub fn reset(&self) {
        let mut table = self.lock();
        table.enabled = false;
        table.masked = false;
        for vector in &mut table.vectors {
            vector.state = POWER_ON;
            if vector.routed.take().is_some()
                && let Err(error) = self.router.set(&vector.route, None)
            {
                debug!(gsi = vector.route.gsi, %error, "cannot clear an interrupt route");
            }
        }
    }

    /// Copy the table.
    pub fn save(&self) -> MsixState {
        let table = self.lock();
        MsixState {
            enabled: table.enabled,
            masked: table.masked,
            vectors: table.vectors.iter().map(|vector| vector.state).collect(),
        }
    }

    /// Pour in a table with as many vectors; live vectors are routed, pending ones stay
    /// pending until [`Msix::set_control`] or an unmask delivers them.
    pub fn restore(&self, state: &MsixState) -> io::Result<()> {
        let mut table = self.lock();
        if state.vectors.len() != table.vectors.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "the saved state has {} interrupt vectors, this device {}",
                    state.vectors.len(),
                    table.vectors.len()
                ),
            ));
        }
        table.enabled = state.enabled;
        table.masked = state.masked;
        for (index, saved) in state.vectors.iter().enumerate() {
            table.vectors[index].state = *saved;
            self.settle(&mut table, index);
        }
        Ok(())
    }

    /// Bring one vector's route in step with its state, and deliver what it held back.
    fn settle(&self, table: &mut Table, index: usize) {
        let live = table.enabled && !table.masked;
        let Some(vector) = table.vectors.get_mut(index) else {
            return;
        };
        if !live || vector.state.masked {
            return;
        }
        let message = MsiMessage {
            address: vector.state.address,
            data: vector.state.data,
        };
        if vector.routed != Some(message) {
            match self.router.set(&vector.route, Some(message)) {
                Ok(()) => vector.routed = Some(message),
                Err(error) => {
                    // The guest chose the message: what cannot be routed never fires.
                    debug!(gsi = vector.route.gsi, ?message, %error, "cannot route an interrupt");
                    return;
                }
            }
        }
        if std::mem::take(&mut vector.state.pending)
            && let Err(error) = vector.route.trigger.write(1)
        {
            debug!(gsi = vector.route.gsi, %error, "cannot raise an interrupt");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn aligned(offset: u64, bytes: usize) -> bool {
    matches!(bytes, 4 | 8) && offset.is_multiple_of(bytes as u64)
}

#[cfg(test)]
pub(crate) mod tests;
