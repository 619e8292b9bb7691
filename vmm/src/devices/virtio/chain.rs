//! Descriptor chains of a driver that is not trusted: checked first, then used.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::bitmap::{AtomicBitmap, RefSlice};
use vm_memory::{Bytes, GuestMemory as _, Permissions, VolatileSlice};

use crate::memory::GuestMemory;

/// Most bytes one chain may describe; the longest legal request is far below.
pub const MAX_CHAIN_BYTES: usize = 64 << 20;
/// Most pieces of guest memory one chain may touch.
pub const MAX_CHAIN_SLICES: usize = 1024;

/// A piece of guest memory; writes through it mark the dirty bitmap.
pub type Slice<'m> = VolatileSlice<'m, RefSlice<'m, AtomicBitmap>>;

/// The driver broke the rules of virtio 1.2 §2.7: loop, bad address, wrong order, overlong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadChain;

/// A request: what the device reads, then what it writes. Reused from request to request.
#[derive(Default)]
pub struct Buffers<'m> {
    /// Device-readable memory in order.
    pub readable: Vec<Slice<'m>>,
    /// Device-writable memory in order.
    pub writable: Vec<Slice<'m>>,
}

impl<'m> Buffers<'m> {
    /// Replace the content by that of `chain`; on error what is left is to be ignored.
    pub fn load<M>(
        &mut self,
        memory: &'m GuestMemory,
        chain: DescriptorChain<M>,
    ) -> Result<(), BadChain>
    where
        M: Deref<Target = GuestMemory>,
    {
        self.readable.clear();
        self.writable.clear();
        let mut bytes = 0usize;
        let mut complete = false;
        for descriptor in chain {
            // The iterator ends alike at the end of a chain and where it is broken.
            complete = !descriptor.has_next();
            let length = descriptor.len() as usize;
            bytes = bytes
                .checked_add(length)
                .filter(|sum| *sum <= MAX_CHAIN_BYTES)
                .ok_or(BadChain)?;
            let (target, access) = if descriptor.is_write_only() {
                (&mut self.writable, Permissions::Write)
            } else if self.writable.is_empty() {
                (&mut self.readable, Permissions::Read)
            } else {
                return Err(BadChain);
            };
            let slices = memory
                .get_slices(descriptor.addr(), length, access)
                .map_err(|_| BadChain)?;
            for slice in slices {
                target.push(slice.map_err(|_| BadChain)?);
            }
            if self.readable.len() + self.writable.len() > MAX_CHAIN_SLICES {
                return Err(BadChain);
            }
        }
        if complete { Ok(()) } else { Err(BadChain) }
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
