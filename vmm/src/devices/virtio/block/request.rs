//! Carrying out one request (virtio 1.2 §5.2.6).

use std::io;
use std::sync::Arc;

use shared_storage::image::{Disk, DiskError};
use tracing::{debug, warn};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::Bytes;
use vm_memory::bitmap::Bitmap;

use super::{BlockCounters, SECTOR, count};
use crate::devices::virtio::chain::{BadChain, Buffers, Slice, Table, scatter, total};
use crate::memory::GuestMemory;

pub(super) const MAX_SEGMENTS: u32 = 16;
pub(super) const MAX_DISCARD_SECTORS: u32 = (1 << 30) / SECTOR as u32;
pub(super) const MAX_ZEROES_SECTORS: u32 = (64 << 20) / SECTOR as u32;

const HEADER_BYTES: usize = 16;
const SEGMENT_BYTES: usize = 16;
const ZEROES_UNMAP: u32 = 1;

/// How a request ended.
enum Outcome {
    /// Status byte to be written, and bytes put into the buffer before it.
    Done(u32, u32),
    /// The gate was shut: try again later.
    Later,
}

/// A read or write: what is to be moved between guest memory and the disk.
pub(super) struct Transfer<'m> {
    pub(super) head: u16,
    pub(super) write: bool,
    pub(super) offset: u64,
    pub(super) slices: Vec<Slice<'m>>,
    status: Slice<'m>,
}

impl Transfer<'_> {
    /// The disk may have written where it reads to.
    pub(super) fn mark(&self) {
        if !self.write {
            for slice in &self.slices {
                slice.bitmap().mark_dirty(0, slice.len());
            }
        }
    }
}

/// What serves requests; the same for all threads of a queue.
pub(super) struct Executor {
    pub(super) disk: Arc<Disk>,
    pub(super) serial: [u8; VIRTIO_BLK_ID_BYTES as usize],
    pub(super) counters: Arc<BlockCounters>,
    /// The driver does not flush: every write must be durable when it ends.
    pub(super) writethrough: bool,
}

impl Executor {
    /// Carry out the request at `head`. Returns the bytes written into its buffers (none for
    /// a chain that is no request), or `None` when the gate is shut and it is to be tried again.
    pub(super) fn run<'m>(
        &self,
        memory: &'m GuestMemory,
        table: Table,
        head: u16,
        buffers: &mut Buffers<'m>,
    ) -> Option<u32> {
        let done = buffers
            .load(memory, table, head)
            .and_then(|()| self.request(head, buffers));
        match done {
            Ok(written) => written,
            Err(BadChain) => Some(0),
        }
    }

    /// The read or write at `head`; `None` when it is anything else, or has to be made durable at
    /// once.
    pub(super) fn transfer<'m>(
        &self,
        memory: &'m GuestMemory,
        table: Table,
        head: u16,
        buffers: &mut Buffers<'m>,
    ) -> Option<Transfer<'m>> {
        buffers.load(memory, table, head).ok()?;
        let opened = Opened::from(buffers).ok()?;
        let transfer = opened.transfer(head, buffers).ok()?;
        (!transfer.write || !self.writethrough).then_some(transfer)
    }

    /// Carry it out here and now; as [`Executor::run`].
    pub(super) fn carry_out(&self, transfer: &Transfer) -> Option<u32> {
        self.count(transfer);
        let Transfer { offset, slices, .. } = transfer;
        let result = if transfer.write {
            self.disk.write_at(*offset, slices)
        } else {
            self.disk.read_at(*offset, slices)
        };
        let flush = transfer.write && self.writethrough && result.is_ok();
        self.end(transfer, if flush { self.disk.flush() } else { result })
    }

    /// It ended with `result`; as [`Executor::run`].
    pub(super) fn end(&self, transfer: &Transfer, result: Result<(), DiskError>) -> Option<u32> {
        let outcome = if transfer.write {
            self.finish("write", result, 0)
        } else {
            self.finish("read", result, total(&transfer.slices) as u32)
        };
        self.tell(&transfer.status, &outcome).unwrap_or(Some(0))
    }

    pub(super) fn count(&self, transfer: &Transfer) {
        let counters = &self.counters;
        let (requests, bytes) = if transfer.write {
            (&counters.writes, &counters.written_bytes)
        } else {
            (&counters.reads, &counters.read_bytes)
        };
        count(requests, 1);
        count(bytes, total(&transfer.slices) as u64);
    }

    fn request(&self, head: u16, buffers: &mut Buffers) -> Result<Option<u32>, BadChain> {
        let opened = Opened::from(buffers)?;
        let outcome = match opened.kind {
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT => match opened.transfer(head, buffers) {
                Ok(transfer) => return Ok(self.carry_out(&transfer)),
                Err(opened) => {
                    return self.tell(&opened.status, &Outcome::Done(VIRTIO_BLK_S_IOERR, 0));
                }
            },
            kind => self.execute(kind, buffers),
        };
        self.tell(&opened.status, &outcome)
    }

    fn tell(&self, status: &Slice, outcome: &Outcome) -> Result<Option<u32>, BadChain> {
        let Outcome::Done(code, written) = *outcome else {
            return Ok(None);
        };
        if code == VIRTIO_BLK_S_IOERR {
            count(&self.counters.errors, 1);
        }
        status.write_obj(code as u8, 0).map_err(|_| BadChain)?;
        Ok(Some(written + 1))
    }

    fn execute(&self, kind: u32, buffers: &mut Buffers) -> Outcome {
        match kind {
            VIRTIO_BLK_T_FLUSH => {
                count(&self.counters.flushes, 1);
                self.finish("flush", self.disk.flush(), 0)
            }
            VIRTIO_BLK_T_GET_ID => {
                let written = scatter(&buffers.writable, &self.serial);
                Outcome::Done(VIRTIO_BLK_S_OK, written as u32)
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if !self.disk.readonly() => {
                self.segments(kind == VIRTIO_BLK_T_WRITE_ZEROES, buffers)
            }
            _ => Outcome::Done(VIRTIO_BLK_S_UNSUPP, 0),
        }
    }

    /// Discard or zero a list of segments (§5.2.6).
    fn segments(&self, zeroes: bool, buffers: &mut Buffers) -> Outcome {
        let bytes = total(&buffers.readable);
        let segments = bytes / SEGMENT_BYTES;
        if !bytes.is_multiple_of(SEGMENT_BYTES) || segments == 0 || segments > MAX_SEGMENTS as usize
        {
            return Outcome::Done(VIRTIO_BLK_S_IOERR, 0);
        }
        count(&self.counters.discards, 1);
        let known_flags = if zeroes { ZEROES_UNMAP } else { 0 };
        let limit = if zeroes {
            MAX_ZEROES_SECTORS
        } else {
            MAX_DISCARD_SECTORS
        };
        for _ in 0..segments {
            let mut raw = [0; SEGMENT_BYTES];
            if buffers.take_front(&mut raw).is_err() {
                return Outcome::Done(VIRTIO_BLK_S_IOERR, 0);
            }
            let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| raw[at + byte]));
            let (sector, sectors, flags) = (
                u64::from(word(0)) | u64::from(word(4)) << 32,
                word(8),
                word(12),
            );
            if flags & !known_flags != 0 {
                return Outcome::Done(VIRTIO_BLK_S_UNSUPP, 0);
            }
            let bytes = u64::from(sectors) * SECTOR;
            let Some(offset) = byte_offset(sector, bytes).filter(|_| sectors <= limit) else {
                return Outcome::Done(VIRTIO_BLK_S_IOERR, 0);
            };
            let result = if zeroes {
                self.disk
                    .write_zeroes(offset, bytes, flags & ZEROES_UNMAP != 0)
            } else {
                self.disk.discard(offset, bytes)
            };
            match self.finish(if zeroes { "zero" } else { "discard" }, result, 0) {
                Outcome::Done(VIRTIO_BLK_S_OK, _) => {}
                other => return other,
            }
        }
        if self.writethrough && zeroes {
            return self.finish("flush", self.disk.flush(), 0);
        }
        Outcome::Done(VIRTIO_BLK_S_OK, 0)
    }

    fn finish(&self, act: &str, result: Result<(), DiskError>, written: u32) -> Outcome {
        match result {
            Ok(()) => Outcome::Done(VIRTIO_BLK_S_OK, written),
            Err(DiskError::Shut(_)) => Outcome::Later,
            Err(DiskError::Io(error)) => {
                let path = self.disk.path().display();
                if error.kind() == io::ErrorKind::InvalidInput {
                    // The guest asked for the impossible; it may do so as often as it likes.
                    debug!(%path, %error, "refused a request");
                } else {
                    warn!("cannot {act} disk {path}: {error}; the guest sees an I/O error");
                }
                Outcome::Done(VIRTIO_BLK_S_IOERR, 0)
            }
        }
    }
}

/// A request whose header was read; the rest of its buffers is data.
struct Opened<'m> {
    kind: u32,
    sector: u64,
    status: Slice<'m>,
}

impl<'m> Opened<'m> {
    fn from(buffers: &mut Buffers<'m>) -> Result<Self, BadChain> {
        let status = buffers.take_last()?;
        let mut header = [0; HEADER_BYTES];
        buffers.take_front(&mut header)?;
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
        Ok(Self {
            kind: word(0),
            sector: u64::from(word(8)) | u64::from(word(12)) << 32,
            status,
        })
    }

    /// What a read or write is to move; given back when it is neither, or not in whole sectors.
    fn transfer(self, head: u16, buffers: &mut Buffers<'m>) -> Result<Transfer<'m>, Self> {
        let slices = match self.kind {
            VIRTIO_BLK_T_IN => &mut buffers.writable,
            VIRTIO_BLK_T_OUT => &mut buffers.readable,
            _ => return Err(self),
        };
        let Some(offset) = byte_offset(self.sector, total(slices) as u64) else {
            return Err(self);
        };
        Ok(Transfer {
            head,
            write: self.kind == VIRTIO_BLK_T_OUT,
            offset,
            slices: std::mem::take(slices),
            status: self.status,
        })
    }
}

/// Byte offset of `sector` when `bytes` are whole sectors and the sum fits.
fn byte_offset(sector: u64, bytes: u64) -> Option<u64> {
    let offset = sector.checked_mul(SECTOR)?;
    offset.checked_add(bytes)?;
    bytes.is_multiple_of(SECTOR).then_some(offset)
}
