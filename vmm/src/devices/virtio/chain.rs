//! Descriptor chains of a driver that is not trusted: checked first, then used.

use virtio_queue::{Queue, QueueT};
use vm_memory::bitmap::{AtomicBitmap, RefSlice};
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions, VolatileSlice};

use crate::memory::GuestMemory;

/// Most bytes one chain may describe; the longest legal request is far below.
pub const MAX_CHAIN_BYTES: usize = 64 << 20;
/// Most descriptors in one chain, and most pieces of guest memory it may touch.
pub const MAX_CHAIN_SLICES: usize = 1024;

const DESCRIPTOR_BYTES: u64 = 16;
const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
const FLAG_INDIRECT: u16 = 4;

/// A piece of guest memory; writes through it mark the dirty bitmap.
pub type Slice<'m> = VolatileSlice<'m, RefSlice<'m, AtomicBitmap>>;

/// The driver broke the rules of virtio 1.2 §2.7: loop, bad address, wrong order, overlong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadChain;

/// A descriptor table in guest memory.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    at: u64,
    entries: u16,
}

impl From<&Queue> for Table {
    fn from(queue: &Queue) -> Self {
        Self {
            at: queue.desc_table(),
            entries: queue.size(),
        }
    }
}

struct Descriptor {
    address: u64,
    bytes: u32,
    flags: u16,
    next: u16,
}

impl Table {
    fn read(self, memory: &GuestMemory, index: u16) -> Result<Descriptor, BadChain> {
        if index >= self.entries {
            return Err(BadChain);
        }
        let at = self
            .at
            .checked_add(u64::from(index) * DESCRIPTOR_BYTES)
            .ok_or(BadChain)?;
        // One copy: the driver may change the table while we look at it.
        let raw: u128 = memory.read_obj(GuestAddress(at)).map_err(|_| BadChain)?;
        let raw = u128::from_le(raw);
        Ok(Descriptor {
            address: raw as u64,
            bytes: (raw >> 64) as u32,
            flags: (raw >> 96) as u16,
            next: (raw >> 112) as u16,
        })
    }

    /// The table that an indirect descriptor of this one points to (§2.7.5.3).
    fn indirect(descriptor: &Descriptor) -> Result<Self, BadChain> {
        let entries = u64::from(descriptor.bytes) / DESCRIPTOR_BYTES;
        let whole = u64::from(descriptor.bytes).is_multiple_of(DESCRIPTOR_BYTES);
        let fits = (1..=MAX_CHAIN_SLICES as u64).contains(&entries);
        if !whole || !fits || descriptor.flags & FLAG_NEXT != 0 {
            return Err(BadChain);
        }
        Ok(Self {
            at: descriptor.address,
            entries: entries as u16,
        })
    }
}

/// A request: what the device reads, then what it writes. Reused from request to request.
#[derive(Default)]
pub struct Buffers<'m> {
    /// Device-readable memory in order.
    pub readable: Vec<Slice<'m>>,
    /// Device-writable memory in order.
    pub writable: Vec<Slice<'m>>,
}

impl<'m> Buffers<'m> {
    /// Replace the content by that of the chain that begins at `head`; on error what is left
    /// is to be ignored.
    pub fn load(
        &mut self,
        memory: &'m GuestMemory,
        mut table: Table,
        head: u16,
    ) -> Result<(), BadChain> {
        self.readable.clear();
        self.writable.clear();
        let mut index = head;
        let mut left = table.entries;
        let mut bytes = 0usize;
        let mut indirect = false;
        loop {
            // A chain longer than its table is a loop.
            left = left.checked_sub(1).ok_or(BadChain)?;
            let descriptor = table.read(memory, index)?;
            if descriptor.flags & FLAG_INDIRECT != 0 {
                if std::mem::replace(&mut indirect, true) {
                    return Err(BadChain);
                }
                table = Table::indirect(&descriptor)?;
                (index, left) = (0, table.entries);
                continue;
            }
            bytes += descriptor.bytes as usize;
            if bytes > MAX_CHAIN_BYTES {
                return Err(BadChain);
            }
            self.push(memory, &descriptor)?;
            if descriptor.flags & FLAG_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
    }

    fn push(&mut self, memory: &'m GuestMemory, descriptor: &Descriptor) -> Result<(), BadChain> {
        let (target, access) = if descriptor.flags & FLAG_WRITE != 0 {
            (&mut self.writable, Permissions::Write)
        } else if self.writable.is_empty() {
            (&mut self.readable, Permissions::Read)
        } else {
            return Err(BadChain);
        };
        let address = GuestAddress(descriptor.address);
        let slices = memory
            .get_slices(address, descriptor.bytes as usize, access)
            .map_err(|_| BadChain)?;
        for slice in slices {
            target.push(slice.map_err(|_| BadChain)?);
        }
        let pieces = self.readable.len() + self.writable.len();
        if pieces <= MAX_CHAIN_SLICES {
            Ok(())
        } else {
            Err(BadChain)
        }
    }

    /// Take `into.len()` bytes off the front of the readable part.
    pub fn take_front(&mut self, into: &mut [u8]) -> Result<(), BadChain> {
        let mut done = 0;
        let mut whole = 0;
        for slice in &mut self.readable {
            let want = (into.len() - done).min(slice.len());
            let (head, tail) = slice.split_at(want).map_err(|_| BadChain)?;
            head.copy_to(&mut into[done..done + want]);
            done += want;
            if tail.is_empty() && want > 0 || slice.is_empty() {
                whole += 1;
            } else {
                *slice = tail;
            }
            if done == into.len() {
                break;
            }
        }
        self.readable.drain(..whole);
        if done == into.len() {
            Ok(())
        } else {
            Err(BadChain)
        }
    }

    /// Take the very last byte of the writable part.
    pub fn take_last(&mut self) -> Result<Slice<'m>, BadChain> {
        while let Some(slice) = self.writable.pop() {
            if let Some(head) = slice.len().checked_sub(1) {
                let (rest, last) = slice.split_at(head).map_err(|_| BadChain)?;
                if !rest.is_empty() {
                    self.writable.push(rest);
                }
                return Ok(last);
            }
        }
        Err(BadChain)
    }
}

/// Sum of the lengths.
pub fn total(slices: &[Slice]) -> usize {
    slices.iter().map(VolatileSlice::len).sum()
}

/// Copy `data` into `slices`; returns how many bytes there was room for.
pub fn scatter(slices: &[Slice], mut data: &[u8]) -> usize {
    let before = data.len();
    for slice in slices {
        let count = slice.len().min(data.len());
        if slice.write_slice(&data[..count], 0).is_err() {
            break;
        }
        data = &data[count..];
    }
    before - data.len()
}
