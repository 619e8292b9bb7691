//! Tap to guest: each packet goes into one chain, or into several when the driver agreed to
//! merge buffers (virtio 1.2 §5.1.6.3.1).

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::debug;
use virtio_queue::{QueueOwnedT, QueueT};

use super::{NetCounters, count};
use crate::devices::virtio::ActiveQueue;
use crate::devices::virtio::chain::{Buffers, Table, scatter, total};
use crate::devices::virtio::completions::Completions;
use crate::devices::virtio::tap::{HEADER_BYTES, MAX_PACKET_BYTES, Tap};
use crate::devices::virtio::worker::{Next, Serve, Stopping};
use crate::memory::GuestMemory;

/// Offset of `num_buffers` in the header.
const NUM_BUFFERS_AT: usize = 10;
/// Packets between two interrupts while more are waiting.
const BATCH: usize = 64;

pub(super) struct Server {
    tap: Tap,
    counters: Arc<NetCounters>,
    completions: Completions,
    mergeable: bool,
    packet: Box<[u8]>,
    /// Bytes of `packet` that still wait for buffers.
    pending: usize,
}

/// What became of a packet.
enum Delivered {
    Yes,
    /// Too few buffers; none was used.
    NoRoom,
    /// It can never fit.
    Dropped,
}

impl Server {
    pub(super) fn new(tap: Tap, counters: Arc<NetCounters>, mergeable: bool) -> Self {
        let packet = vec![0; MAX_PACKET_BYTES].into_boxed_slice();
        Self {
            tap,
            counters,
            completions: Completions::default(),
            mergeable,
            packet,
            pending: 0,
        }
    }

    fn pump(
        &mut self,
        queue: &mut ActiveQueue,
        memory: &GuestMemory,
        stopping: &Stopping,
    ) -> Result<Next, virtio_queue::Error> {
        queue.queue.disable_notification(memory)?;
        let mut delivered = 0;
        while !stopping.now() {
            if self.pending == 0 {
                match self.tap.receive(&mut self.packet) {
                    Ok(bytes) if bytes > HEADER_BYTES => self.pending = bytes,
                    Ok(_) => count(&self.counters.dropped, 1),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Ok(Next::WaitWith(self.tap.descriptor()));
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        // The interface went away or down; look again when the guest stirs.
                        debug!(tap = self.tap.name(), %error, "cannot receive");
                        queue.queue.enable_notification(memory)?;
                        return Ok(Next::Wait);
                    }
                }
                continue;
            }
            match self.deliver(queue, memory)? {
                Delivered::Yes => {
                    count(&self.counters.received, 1);
                    count(&self.counters.received_bytes, self.pending as u64);
                    self.pending = 0;
                    delivered += 1;
                    if delivered % BATCH == 0 {
                        self.completions.signal(queue, memory)?;
                    }
                }
                Delivered::Dropped => {
                    count(&self.counters.dropped, 1);
                    self.pending = 0;
                }
                Delivered::NoRoom => {
                    if !await_buffers(queue, memory)? {
                        return Ok(Next::Wait);
                    }
                    queue.queue.disable_notification(memory)?;
                }
            }
        }
        Ok(Next::Wait)
    }

    /// Put the pending packet into buffers and give them back.
    fn deliver(
        &mut self,
        queue: &mut ActiveQueue,
        memory: &GuestMemory,
    ) -> Result<Delivered, virtio_queue::Error> {
        let mut used: Vec<(u16, u32)> = Vec::new();
        let mut room: Vec<Buffers> = Vec::new();
        let mut bytes = 0;
        let mut chains = 0;
        while bytes < self.pending {
            // A driver cannot have more chains under way than its ring has entries.
            chains += 1;
            if chains > queue.queue.size() {
                return Err(virtio_queue::Error::InvalidAvailRingIndex);
            }
            let Some(chain) = queue.queue.iter(memory)?.next() else {
                put_back(queue, used.len());
                return Ok(Delivered::NoRoom);
            };
            let head = chain.head_index();
            let mut buffers = Buffers::default();
            let table = Table::from(&queue.queue);
            if buffers.load(memory, table, head).is_err() || total(&buffers.writable) == 0 {
                // Useless to us; the driver gets it back at once, and in order.
                if used.is_empty() {
                    self.completions
                        .publish(&mut queue.queue, memory, &[(head, 0)])?;
                    continue;
                }
                put_back(queue, used.len() + 1);
                return self.reject(queue, memory);
            }
            let here = total(&buffers.writable).min(self.pending - bytes);
            bytes += here;
            used.push((head, here as u32));
            room.push(buffers);
            if !self.mergeable && bytes < self.pending {
                self.completions
                    .publish(&mut queue.queue, memory, &[(head, 0)])?;
                return Ok(Delivered::Dropped);
            }
        }
        let buffers = used.len() as u16;
        self.packet[NUM_BUFFERS_AT..HEADER_BYTES].copy_from_slice(&buffers.to_le_bytes());
        let mut rest = &self.packet[..self.pending];
        for buffers in &room {
            rest = &rest[scatter(&buffers.writable, rest)..];
        }
        self.completions.publish(&mut queue.queue, memory, &used)?;
        Ok(Delivered::Yes)
    }

    /// A broken chain in the midst of good ones: give the good ones back empty.
    fn reject(
        &mut self,
        queue: &mut ActiveQueue,
        memory: &GuestMemory,
    ) -> Result<Delivered, virtio_queue::Error> {
        let Some(chain) = queue.queue.iter(memory)?.next() else {
            return Ok(Delivered::NoRoom);
        };
        let head = chain.head_index();
        self.completions
            .publish(&mut queue.queue, memory, &[(head, 0)])?;
        Ok(Delivered::Dropped)
    }
}

/// Ask to be told of buffers beyond those already there; `true` if some came meanwhile.
fn await_buffers(
    queue: &mut ActiveQueue,
    memory: &GuestMemory,
) -> Result<bool, virtio_queue::Error> {
    // The driver rings when it passes the index we name, so name the one it has reached:
    // what lies before it was too little.
    let taken = queue.queue.next_avail();
    let reached = queue.queue.avail_idx(memory, Ordering::Acquire)?.0;
    queue.queue.set_next_avail(reached);
    let more = queue.queue.enable_notification(memory);
    queue.queue.set_next_avail(taken);
    more
}

fn put_back(queue: &mut ActiveQueue, chains: usize) {
    for _ in 0..chains {
        queue.queue.go_to_previous_position();
    }
}

impl Serve for Server {
    fn serve(
        &mut self,
        queue: &mut ActiveQueue,
        memory: &GuestMemory,
        stopping: &Stopping,
    ) -> Next {
        let next = self.pump(queue, memory, stopping).unwrap_or(Next::Broken);
        match self.completions.signal(queue, memory) {
            Ok(()) => next,
            Err(_) => Next::Broken,
        }
    }
}
