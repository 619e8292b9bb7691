//! Guest to tap: each chain is one packet, written straight from guest memory.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tracing::debug;
use virtio_queue::{QueueOwnedT, QueueT};

use super::addresses::{ARP_BYTES, Addresses};
use super::{NetCounters, count};
use crate::devices::virtio::ActiveQueue;
use crate::devices::virtio::chain::{Buffers, Slice, Table, total};
use crate::devices::virtio::completions::Completions;
use crate::devices::virtio::tap::{HEADER_BYTES, MAX_PACKET_BYTES, Tap};
use crate::devices::virtio::worker::{Next, Serve, Stopping};
use crate::memory::GuestMemory;
use vmm_core::mac::Mac;

const ETHERNET_HEADER_BYTES: usize = 14;
/// Shorter ones are padded; ARP is.
const ETHERNET_FRAME_BYTES_MIN: usize = 60;
/// How soon a full tap is tried again.
const FULL_RETRY: Duration = Duration::from_millis(1);

/// Who sends.
pub(super) struct Speaker {
    pub mac: Mac,
    pub addresses: Addresses,
}

pub(super) struct Server {
    tap: Tap,
    counters: Arc<NetCounters>,
    speaker: Speaker,
    completions: Completions,
}

impl Server {
    pub(super) fn new(tap: Tap, counters: Arc<NetCounters>, speaker: Speaker) -> Self {
        Self {
            tap,
            counters,
            speaker,
            completions: Completions::default(),
        }
    }

    fn drain(
        &mut self,
        queue: &mut ActiveQueue,
        memory: &GuestMemory,
        stopping: &Stopping,
    ) -> Result<Next, virtio_queue::Error> {
        let mut buffers = Buffers::default();
        loop {
            queue.queue.disable_notification(memory)?;
            while let Some(chain) = queue.queue.iter(memory)?.next() {
                if stopping.now() {
                    queue.queue.go_to_previous_position();
                    return Ok(Next::Wait);
                }
                let head = chain.head_index();
                let sent = match buffers.load(memory, Table::from(&queue.queue), head) {
                    Ok(()) => self.send(&buffers),
                    Err(_) => Err(io::ErrorKind::InvalidData.into()),
                };
                match sent {
                    Ok(bytes) => {
                        count(&self.counters.sent, 1);
                        count(&self.counters.sent_bytes, bytes as u64);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        queue.queue.go_to_previous_position();
                        return Ok(Next::Retry(FULL_RETRY));
                    }
                    Err(error) => {
                        debug!(tap = self.tap.name(), %error, "dropped a frame of the guest");
                        count(&self.counters.dropped, 1);
                    }
                }
                self.completions
                    .publish(&mut queue.queue, memory, &[(head, 0)])?;
            }
            if !queue.queue.enable_notification(memory)? {
                return Ok(Next::Wait);
            }
        }
    }

    /// A short frame may say which addresses the guest has.
    fn listen(&self, pieces: &[Slice<'_>]) {
        let mut frame = [0; HEADER_BYTES + ARP_BYTES];
        let mut at = 0;
        for piece in pieces {
            at += piece.copy_to(&mut frame[at..]);
        }
        let Speaker { mac, addresses } = &self.speaker;
        addresses.see(*mac, &frame[HEADER_BYTES..at.max(HEADER_BYTES)]);
    }

    fn send(&self, buffers: &Buffers) -> io::Result<usize> {
        let bytes = total(&buffers.readable);
        if !(HEADER_BYTES + ETHERNET_HEADER_BYTES..=MAX_PACKET_BYTES).contains(&bytes) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let guards: Vec<_> = buffers
            .readable
            .iter()
            .map(vm_memory::VolatileSlice::ptr_guard)
            .collect();
        let pieces: Vec<_> = guards
            .iter()
            .map(|guard| libc::iovec {
                iov_base: guard.as_ptr().cast_mut().cast(),
                iov_len: guard.len(),
            })
            .collect();
        if bytes <= HEADER_BYTES + ETHERNET_FRAME_BYTES_MIN {
            self.listen(&buffers.readable);
        }
        // SAFETY: the guards keep the guest memory behind every piece mapped.
        unsafe { self.tap.send(&pieces) }
    }
}

impl Serve for Server {
    fn serve(
        &mut self,
        queue: &mut ActiveQueue,
        memory: &GuestMemory,
        stopping: &Stopping,
    ) -> Next {
        let next = self.drain(queue, memory, stopping).unwrap_or(Next::Broken);
        match self.completions.signal(queue, memory) {
            Ok(()) => next,
            Err(_) => Next::Broken,
        }
    }
}
