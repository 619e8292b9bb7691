//! Entropy device (virtio 1.2 §5.4): fills buffers from the host's random pool.

use std::io;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::{QueueOwnedT, QueueT};

use super::chain::{Buffers, Table, scatter, total};
use super::completions::Completions;
use super::worker::{Next, Serve, Stopping, Worker};
use super::{Activation, ActiveQueue, VirtioDevice, offer};
use crate::codec;
use crate::memory::GuestMemory;

const QUEUE_SIZES: [u16; 1] = [64];
/// Most bytes one request gets; a driver that wants more asks again.
const MAX_REQUEST_BYTES: usize = 64 << 10;
const STATE_VERSION: u16 = 1;

/// A virtio entropy device.
#[derive(Default)]
pub struct Rng {
    worker: Option<Worker>,
}

#[derive(Serialize, Deserialize)]
struct State {
    version: u16,
}

impl Rng {
    /// The device.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        offer(&[])
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn start(&mut self, activation: Activation) -> io::Result<()> {
        if let Some(queue) = activation.queues.into_iter().next() {
            let server = Server::default();
            self.worker = Some(Worker::spawn(
                "rng".into(),
                queue,
                activation.memory,
                server,
            )?);
        }
        Ok(())
    }

    fn ask_to_stop(&self) {
        self.worker.iter().for_each(Worker::ask_to_stop);
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        self.worker
            .take()
            .and_then(Worker::stop)
            .into_iter()
            .collect()
    }

    fn save(&self) -> Vec<u8> {
        codec::encode(&State {
            version: STATE_VERSION,
        })
        .expect("a number is below the codec limit")
    }

    fn restore(&mut self, state: &[u8]) -> io::Result<()> {
        let state: State = codec::decode(state)?;
        codec::check_version("entropy device", state.version, STATE_VERSION)
    }
}

impl Drop for Rng {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(Default)]
struct Server {
    completions: Completions,
    scratch: Vec<u8>,
}

impl Serve for Server {
    fn serve(
        &mut self,
        queue: &mut ActiveQueue,
        memory: &GuestMemory,
        stopping: &Stopping,
    ) -> Next {
        match self.drain(queue, memory, stopping) {
            Ok(()) => Next::Wait,
            Err(_) => Next::Broken,
        }
    }
}

impl Server {
    fn drain(
        &mut self,
        queue: &mut ActiveQueue,
        memory: &GuestMemory,
        stopping: &Stopping,
    ) -> Result<(), virtio_queue::Error> {
        let mut buffers = Buffers::default();
        loop {
            queue.queue.disable_notification(memory)?;
            while let Some(chain) = queue.queue.iter(memory)?.next() {
                if stopping.now() {
                    queue.queue.go_to_previous_position();
                    return Ok(());
                }
                let head = chain.head_index();
                let table = Table::from(&queue.queue);
                let written = match buffers.load(memory, table, head) {
                    Ok(()) => self.fill(&buffers),
                    Err(_) => 0,
                };
                self.completions
                    .publish(&mut queue.queue, memory, &[(head, written)])?;
                self.completions.signal(queue, memory)?;
            }
            if !queue.queue.enable_notification(memory)? {
                return Ok(());
            }
        }
    }

    fn fill(&mut self, buffers: &Buffers) -> u32 {
        self.scratch
            .resize(total(&buffers.writable).min(MAX_REQUEST_BYTES), 0);
        let mut filled = 0;
        while filled < self.scratch.len() {
            let flags = rustix::rand::GetRandomFlags::empty();
            match rustix::rand::getrandom(&mut self.scratch[filled..], flags) {
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
        scatter(&buffers.writable, &self.scratch[..filled]) as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::super::testing::{
        BUFFERS_AT, Guest, hostile_ring, plain_memory, readable, wait_for, writable,
    };
    use super::{Rng, Serve, Server, Stopping};

    #[test]
    fn buffers_are_filled_and_dirty() {
        let mut guest = Guest::new(Box::new(Rng::new()));
        guest.up(u64::MAX);
        guest.clean();
        let pieces = [
            writable(BUFFERS_AT, 100),
            writable(BUFFERS_AT + 0x1000, 100),
        ];
        assert_eq!(guest.request(0, &pieces), 200);
        let bytes: [u8; 32] = guest
            .memory
            .read_obj(GuestAddress(BUFFERS_AT + 0x1000))
            .unwrap();
        assert!(bytes.iter().any(|byte| *byte != 0));
        assert!(guest.is_dirty(BUFFERS_AT + 0x1000));
        // The used ring is filled before the interrupt is raised.
        wait_for(|| guest.router.fired(1) > 0);
        assert_eq!(guest.request(0, &[readable(BUFFERS_AT, 100)]), 0);
        assert_eq!(guest.request(0, &[writable(1 << 40, 100)]), 0);
        assert_eq!(guest.request(0, &[writable(BUFFERS_AT, 1)]), 1);
    }

    proptest! {
        #[test]
        fn hostile_rings_are_survived(ring in hostile_ring()) {
            let memory = plain_memory();
            let mut queue = ring.install(&memory);
            Server::default().serve(&mut queue, &memory, &Stopping::never());
        }
    }
}
