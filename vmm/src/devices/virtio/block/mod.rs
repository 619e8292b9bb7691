//! Block device (virtio 1.2 §5.2): several queues on one [`Disk`], each served by a crew of
//! threads: one that has the kernel carry many requests out at once where the disk can, else as many
//! as the storage is slow.

mod crew;
mod pilot;
mod request;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde::{Deserialize, Serialize};
use shared_storage::image::Disk;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_ID_BYTES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use self::crew::Crew;
use self::request::{Executor, MAX_DISCARD_SECTORS, MAX_SEGMENTS, MAX_ZEROES_SECTORS};
use super::{Activation, ActiveQueue, VirtioDevice, count, offer};
use crate::codec;

/// Descriptors per queue.
pub const QUEUE_SIZE: u16 = 256;
/// Most queues a block device may have.
pub const MAX_QUEUES: u16 = 64;

const SECTOR: u64 = 512;
const CONFIG_BYTES: usize = 60;
const STATE_VERSION: u16 = 1;

/// What a block device has done so far.
#[derive(Debug, Default)]
pub struct BlockCounters {
    /// Read requests.
    pub reads: AtomicU64,
    /// Bytes read.
    pub read_bytes: AtomicU64,
    /// Write requests.
    pub writes: AtomicU64,
    /// Bytes written.
    pub written_bytes: AtomicU64,
    /// Flush requests.
    pub flushes: AtomicU64,
    /// Discard and write-zeroes requests.
    pub discards: AtomicU64,
    /// Requests that ended with an error status.
    pub errors: AtomicU64,
    /// Times a request had to wait because the gate was shut.
    pub gate_waits: AtomicU64,
}

/// A virtio block device.
pub struct Block {
    name: String,
    disk: Arc<Disk>,
    serial: [u8; VIRTIO_BLK_ID_BYTES as usize],
    queue_sizes: Vec<u16>,
    counters: Arc<BlockCounters>,
    crews: Vec<Crew>,
    /// Requests taken from each queue but not carried out, because the gate was shut when the
    /// device stopped.
    parked: Vec<Vec<u16>>,
}

#[derive(Serialize, Deserialize)]
struct State {
    version: u16,
    bytes: u64,
    readonly: bool,
    parked: Vec<Vec<u16>>,
}

impl Block {
    /// A device on `disk` with `queues` queues (clamped to 1..=[`MAX_QUEUES`]; one per vCPU
    /// is best). `name` names its threads; `serial` is what the guest sees under
    /// `/dev/disk/by-id` (20 bytes at most).
    pub fn new(name: &str, disk: Arc<Disk>, queues: u16, serial: &str) -> Self {
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        let bytes = serial.len().min(id.len());
        id[..bytes].copy_from_slice(&serial.as_bytes()[..bytes]);
        let queues = usize::from(queues.clamp(1, MAX_QUEUES));
        Self {
            name: name.to_owned(),
            disk,
            serial: id,
            queue_sizes: vec![QUEUE_SIZE; queues],
            counters: Arc::default(),
            crews: Vec::new(),
            parked: vec![Vec::new(); queues],
        }
    }

    /// The counters, which stay valid as long as anyone holds them.
    pub fn counters(&self) -> Arc<BlockCounters> {
        self.counters.clone()
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_MQ,
        ];
        if self.disk.readonly() {
            bits.push(VIRTIO_BLK_F_RO);
        } else {
            bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
        }
        offer(&bits)
    }

    fn config(&self) -> Vec<u8> {
        let align = self.disk.preferred_align() as u32;
        let exponent = (align / SECTOR as u32).trailing_zeros() as u8;
        let mut config = [0; CONFIG_BYTES];
        let mut put = |at: usize, value: &[u8]| config[at..at + value.len()].copy_from_slice(value);
        put(0, &(self.disk.bytes() / SECTOR).to_le_bytes());
        put(12, &u32::from(QUEUE_SIZE - 2).to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(24, &[exponent]);
        put(34, &(self.queue_sizes.len() as u16).to_le_bytes());
        put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(40, &MAX_SEGMENTS.to_le_bytes());
        put(44, &(align / SECTOR as u32).to_le_bytes());
        put(48, &MAX_ZEROES_SECTORS.to_le_bytes());
        put(52, &MAX_SEGMENTS.to_le_bytes());
        put(56, &[1]);
        config.to_vec()
    }

    fn start(&mut self, activation: Activation) -> io::Result<()> {
        self.disk.acquire().map_err(io::Error::other)?;
        let writethrough = activation.features & (1 << VIRTIO_BLK_F_FLUSH) == 0;
        for queue in activation.queues {
            let executor = Executor {
                disk: self.disk.clone(),
                serial: self.serial,
                counters: self.counters.clone(),
                writethrough,
            };
            let name = format!("{}-q{}", self.name, queue.index);
            let parked = std::mem::take(&mut self.parked[usize::from(queue.index)]);
            match Crew::start(name, queue, parked, activation.memory.clone(), executor) {
                Ok(crew) => self.crews.push(crew),
                Err(error) => {
                    self.stop();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn ask_to_stop(&self) {
        self.crews.iter().for_each(Crew::ask_to_stop);
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        self.ask_to_stop();
        let mut queues = Vec::new();
        for crew in self.crews.drain(..) {
            if let Some((queue, parked)) = crew.stop() {
                self.parked[usize::from(queue.index)] = parked;
                queues.push(queue);
            }
        }
        queues
    }

    fn reset(&mut self) {
        self.parked.iter_mut().for_each(Vec::clear);
    }

    fn save(&self) -> Vec<u8> {
        codec::encode(&State {
            version: STATE_VERSION,
            bytes: self.disk.bytes(),
            readonly: self.disk.readonly(),
            parked: self.parked.clone(),
        })
        .expect("a few numbers are below the codec limit")
    }

    fn restore(&mut self, state: &[u8]) -> io::Result<()> {
        let state: State = codec::decode(state)?;
        let invalid = |why: String| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        codec::check_version("block device", state.version, STATE_VERSION)?;
        if (state.bytes, state.readonly) != (self.disk.bytes(), self.disk.readonly()) {
            return invalid(format!(
                "disk {} is not the one the guest was saved with: {} bytes instead of {}",
                self.disk.path().display(),
                self.disk.bytes(),
                state.bytes
            ));
        }
        let fits = state.parked.len() == self.parked.len()
            && state
                .parked
                .iter()
                .all(|heads| heads.len() <= usize::from(QUEUE_SIZE));
        if !fits {
            return invalid("the saved block device has other queues".to_owned());
        }
        self.parked = state.parked;
        Ok(())
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests;
