//! Block device (virtio 1.2 §5.2): several queues, a thread each, on one [`Disk`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use shared_storage::image::{Disk, DiskError};
use tracing::{debug, warn};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::Bytes;

use super::chain::{BadChain, Buffers, scatter, total};
use super::worker::{Next, Serve, Stopping, Worker};
use super::{Activation, ActiveQueue, VirtioDevice};
use crate::codec;
use crate::memory::GuestMemory;

/// Descriptors per queue.
pub const QUEUE_SIZE: u16 = 256;
/// Most queues a block device may have.
pub const MAX_QUEUES: u16 = 64;

const SECTOR: u64 = 512;
const HEADER_BYTES: usize = 16;
const SEGMENT_BYTES: usize = 16;
const MAX_SEGMENTS: u32 = 16;
const MAX_DISCARD_SECTORS: u32 = (1 << 30) / SECTOR as u32;
const MAX_ZEROES_SECTORS: u32 = (64 << 20) / SECTOR as u32;
const ZEROES_UNMAP: u32 = 1;
const CONFIG_BYTES: usize = 60;
/// A completion waits at most this long for others to share its interrupt.
const COALESCE: Duration = Duration::from_micros(100);
/// How soon a request that found the gate shut is tried again.
const GATE_RETRY: Duration = Duration::from_millis(20);
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

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// A virtio block device.
pub struct Block {
    name: String,
    disk: Arc<Disk>,
    serial: [u8; VIRTIO_BLK_ID_BYTES as usize],
    queue_sizes: Vec<u16>,
    counters: Arc<BlockCounters>,
    workers: Vec<Worker>,
}

#[derive(Serialize, Deserialize)]
struct State {
    version: u16,
    bytes: u64,
    readonly: bool,
}

impl Block {
    /// A device on `disk` with `queues` queues (clamped to 1..=[`MAX_QUEUES`]; one per vCPU
    /// is best). `name` names its threads; `serial` is what the guest sees under
    /// `/dev/disk/by-id` (20 bytes at most).
    pub fn new(name: &str, disk: Arc<Disk>, queues: u16, serial: &str) -> Self {
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        let bytes = serial.len().min(id.len());
        id[..bytes].copy_from_slice(&serial.as_bytes()[..bytes]);
        Self {
            name: name.to_owned(),
            disk,
            serial: id,
            queue_sizes: vec![QUEUE_SIZE; usize::from(queues.clamp(1, MAX_QUEUES))],
            counters: Arc::default(),
            workers: Vec::new(),
        }
    }

    /// The counters, which stay valid as long as anyone holds them.
    pub fn counters(&self) -> Arc<BlockCounters> {
        self.counters.clone()
    }

    fn config(&self) -> [u8; CONFIG_BYTES] {
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
        config
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
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
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
        bits.iter().fold(0, |features, bit| features | 1 << bit)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = usize::try_from(at)
                .ok()
                .and_then(|at| config.get(at).copied())
                .unwrap_or(0);
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn start(&mut self, activation: Activation) -> io::Result<()> {
        self.disk.acquire().map_err(io::Error::other)?;
        let writethrough = activation.features & (1 << VIRTIO_BLK_F_FLUSH) == 0;
        for queue in activation.queues {
            let server = Server {
                disk: self.disk.clone(),
                serial: self.serial,
                counters: self.counters.clone(),
                writethrough,
            };
            let name = format!("{}-q{}", self.name, queue.index);
            match Worker::spawn(name, queue, activation.memory.clone(), server) {
                Ok(worker) => self.workers.push(worker),
                Err(error) => {
                    self.stop();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        for worker in &self.workers {
            worker.ask_to_stop();
        }
        self.workers.drain(..).filter_map(Worker::stop).collect()
    }

    fn reset(&mut self) {}

    fn save(&self) -> Vec<u8> {
        let (bytes, readonly) = (self.disk.bytes(), self.disk.readonly());
        codec::encode(&State {
            version: STATE_VERSION,
            bytes,
            readonly,
        })
        .expect("a few numbers are below the codec limit")
    }

    fn restore(&mut self, state: &[u8]) -> io::Result<()> {
        let state: State = codec::decode(state)?;
        let invalid = |why: String| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        if state.version != STATE_VERSION {
            return invalid(format!(
                "the saved block device has version {}, this program knows {STATE_VERSION}",
                state.version
            ));
        }
        if (state.bytes, state.readonly) != (self.disk.bytes(), self.disk.readonly()) {
            return invalid(format!(
                "disk {} is not the one the guest was saved with: {} bytes instead of {}",
                self.disk.path().display(),
                self.disk.bytes(),
                state.bytes
            ));
        }
        Ok(())
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.stop();
    }
}

/// How a request ended.
enum Outcome {
    /// Status byte to be written, and bytes put into the buffer before it.
    Done(u32, u32),
    /// The gate was shut: put the request back.
    Later,
}

/// Serves one queue.
struct Server {
    disk: Arc<Disk>,
    serial: [u8; VIRTIO_BLK_ID_BYTES as usize],
    counters: Arc<BlockCounters>,
    writethrough: bool,
}

impl Serve for Server {
    fn serve(
        &mut self,
        queue: &mut ActiveQueue,
        memory: &GuestMemory,
        stopping: &Stopping,
    ) -> Next {
        let next = self.drain(queue, memory, stopping).unwrap_or(Next::Broken);
        match signal(queue, memory) {
            Ok(()) => next,
            Err(_) => Next::Broken,
        }
    }
}

impl Server {
    fn drain(
        &self,
        queue: &mut ActiveQueue,
        memory: &GuestMemory,
        stopping: &Stopping,
    ) -> Result<Next, virtio_queue::Error> {
        let mut buffers = Buffers::default();
        let mut unsignalled_since = None;
        loop {
            queue.queue.disable_notification(memory)?;
            while let Some(chain) = queue.queue.iter(memory)?.next() {
                if stopping.now() {
                    queue.queue.go_to_previous_position();
                    return Ok(Next::Wait);
                }
                let head = chain.head_index();
                let written = match buffers
                    .load(memory, chain)
                    .map(|()| self.request(&mut buffers))
                {
                    Ok(Ok(Some(written))) => written,
                    Ok(Ok(None)) => {
                        queue.queue.go_to_previous_position();
                        count(&self.counters.gate_waits, 1);
                        return Ok(Next::Retry(GATE_RETRY));
                    }
                    Ok(Err(BadChain)) | Err(BadChain) => 0,
                };
                queue.queue.add_used(memory, head, written)?;
                if unsignalled_since.get_or_insert_with(Instant::now).elapsed() > COALESCE {
                    signal(queue, memory)?;
                    unsignalled_since = None;
                }
            }
            if !queue.queue.enable_notification(memory)? {
                return Ok(Next::Wait);
            }
        }
    }

    /// Carry out one request. Returns the bytes written into its buffers, or `None` when it
    /// is to be tried again later.
    fn request(&self, buffers: &mut Buffers) -> Result<Option<u32>, BadChain> {
        let status = buffers.take_last()?;
        let mut header = [0; HEADER_BYTES];
        buffers.take_front(&mut header)?;
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
        let sector = u64::from(word(8)) | u64::from(word(12)) << 32;
        match self.execute(word(0), sector, buffers) {
            Outcome::Done(code, written) => {
                if code == VIRTIO_BLK_S_IOERR {
                    count(&self.counters.errors, 1);
                }
                status.write_obj(code as u8, 0).map_err(|_| BadChain)?;
                Ok(Some(written + 1))
            }
            Outcome::Later => Ok(None),
        }
    }

    fn execute(&self, kind: u32, sector: u64, buffers: &mut Buffers) -> Outcome {
        match kind {
            VIRTIO_BLK_T_IN => self.read(sector, buffers),
            VIRTIO_BLK_T_OUT => self.write(sector, buffers),
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

    fn read(&self, sector: u64, buffers: &Buffers) -> Outcome {
        let bytes = total(&buffers.writable) as u64;
        let Some(offset) = byte_offset(sector, bytes) else {
            return Outcome::Done(VIRTIO_BLK_S_IOERR, 0);
        };
        count(&self.counters.reads, 1);
        count(&self.counters.read_bytes, bytes);
        self.finish(
            "read",
            self.disk.read_at(offset, &buffers.writable),
            bytes as u32,
        )
    }

    fn write(&self, sector: u64, buffers: &Buffers) -> Outcome {
        let bytes = total(&buffers.readable) as u64;
        let Some(offset) = byte_offset(sector, bytes) else {
            return Outcome::Done(VIRTIO_BLK_S_IOERR, 0);
        };
        count(&self.counters.writes, 1);
        count(&self.counters.written_bytes, bytes);
        let mut result = self.disk.write_at(offset, &buffers.readable);
        if self.writethrough && result.is_ok() {
            result = self.disk.flush();
        }
        self.finish("write", result, 0)
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

/// Byte offset of `sector` when `bytes` are whole sectors and the sum fits.
fn byte_offset(sector: u64, bytes: u64) -> Option<u64> {
    let offset = sector.checked_mul(SECTOR)?;
    offset.checked_add(bytes)?;
    bytes.is_multiple_of(SECTOR).then_some(offset)
}

fn signal(queue: &mut ActiveQueue, memory: &GuestMemory) -> Result<(), virtio_queue::Error> {
    if queue.queue.needs_notification(memory)?
        && let Err(error) = queue.interrupt.used()
    {
        warn!(queue = queue.index, %error, "cannot interrupt the guest");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared_storage::image::{DiskOptions, Format};
    use vm_memory::{Bytes, GuestAddress};

    use super::super::testing::{
        BUFFERS_AT, Guest, Piece, hostile_ring, plain_memory, readable, writable,
    };
    use super::*;

    const DISK_BYTES: usize = 64 << 10;
    const HEADER: u64 = BUFFERS_AT;
    const DATA: u64 = BUFFERS_AT + 0x1000;
    const STATUS: u64 = BUFFERS_AT + 0x8000;
    const ALL: u64 = u64::MAX;

    fn disk(readonly: bool) -> (tempfile::NamedTempFile, Arc<Disk>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..DISK_BYTES).map(|at| (at / 512) as u8).collect();
        std::fs::write(file.path(), content).unwrap();
        let options = DiskOptions {
            readonly,
            ..DiskOptions::new(file.path(), Format::Raw)
        };
        let disk = Arc::new(Disk::open(options).unwrap());
        (file, disk)
    }

    fn guest(disk: &Arc<Disk>) -> Guest {
        let mut guest = Guest::new(Box::new(Block::new("blk0", disk.clone(), 2, "serial-7")));
        guest.up(ALL);
        guest
    }

    fn ask(guest: &mut Guest, kind: u32, sector: u64, data: &[Piece]) -> (u8, u32) {
        guest.memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        guest
            .memory
            .write_obj(sector, GuestAddress(HEADER + 8))
            .unwrap();
        guest
            .memory
            .write_obj(0xaau8, GuestAddress(STATUS))
            .unwrap();
        let mut pieces = vec![readable(HEADER, 16)];
        pieces.extend_from_slice(data);
        pieces.push(writable(STATUS, 1));
        let written = guest.request(1, &pieces);
        (
            guest.memory.read_obj(GuestAddress(STATUS)).unwrap(),
            written,
        )
    }

    #[test]
    fn reads_land_in_guest_memory_and_mark_it_dirty() {
        let (_file, disk) = disk(false);
        let mut guest = guest(&disk);
        assert_eq!(u64::from_le_bytes(guest.config(0)), DISK_BYTES as u64 / 512);
        guest.clean();
        let pieces = [writable(DATA, 512), writable(DATA + 0x2000, 512)];
        assert_eq!(ask(&mut guest, VIRTIO_BLK_T_IN, 3, &pieces), (0, 1025));
        assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(DATA)).unwrap(), 3);
        assert_eq!(
            guest
                .memory
                .read_obj::<u8>(GuestAddress(DATA + 0x2000))
                .unwrap(),
            4
        );
        assert!(guest.is_dirty(DATA) && guest.is_dirty(DATA + 0x2000) && guest.is_dirty(STATUS));
        assert!(!guest.is_dirty(DATA + 0x1000));
        assert!(guest.router.fired(2) > 0);
    }

    #[test]
    fn writes_reach_the_file() {
        let (file, disk) = disk(false);
        let mut guest = guest(&disk);
        guest
            .memory
            .write_slice(&[0x5a; 1024], GuestAddress(DATA))
            .unwrap();
        assert_eq!(
            ask(&mut guest, VIRTIO_BLK_T_OUT, 10, &[readable(DATA, 1024)]),
            (0, 1)
        );
        assert_eq!(ask(&mut guest, VIRTIO_BLK_T_FLUSH, 0, &[]), (0, 1));
        let content = std::fs::read(file.path()).unwrap();
        assert_eq!(content[10 * 512..12 * 512], [0x5a; 1024]);
        assert_eq!(content[12 * 512], 12);
        assert_eq!(content.len(), DISK_BYTES);
    }

    #[test]
    fn zeroes_discards_and_identity() {
        let (file, disk) = disk(false);
        let mut guest = guest(&disk);
        for (kind, sector, flags) in [
            (VIRTIO_BLK_T_WRITE_ZEROES, 8u64, 0u32),
            (VIRTIO_BLK_T_WRITE_ZEROES, 20, 1),
        ] {
            guest.memory.write_obj(sector, GuestAddress(DATA)).unwrap();
            guest
                .memory
                .write_obj(9u32, GuestAddress(DATA + 8))
                .unwrap();
            guest
                .memory
                .write_obj(flags, GuestAddress(DATA + 12))
                .unwrap();
            assert_eq!(ask(&mut guest, kind, 0, &[readable(DATA, 16)]), (0, 1));
            let content = std::fs::read(file.path()).unwrap();
            let at = sector as usize * 512;
            assert_eq!(content[at..at + 9 * 512], [0; 9 * 512]);
            assert_eq!(content[at - 1], sector as u8 - 1);
            assert_eq!(content[at + 9 * 512], sector as u8 + 9);
        }
        assert_eq!(
            ask(&mut guest, VIRTIO_BLK_T_DISCARD, 0, &[readable(DATA, 15)]).0,
            1
        );
        assert_eq!(
            ask(&mut guest, VIRTIO_BLK_T_GET_ID, 0, &[writable(DATA, 20)]),
            (0, 21)
        );
        assert_eq!(
            guest
                .memory
                .read_obj::<[u8; 8]>(GuestAddress(DATA))
                .unwrap(),
            *b"serial-7"
        );
    }

    #[test]
    fn wrong_requests_are_errors() {
        let (_file, disk) = disk(true);
        let mut guest = guest(&disk);
        let data = [readable(DATA, 512)];
        assert_eq!(ask(&mut guest, VIRTIO_BLK_T_OUT, 0, &data).0, 1);
        assert_eq!(ask(&mut guest, 77, 0, &data).0, 2);
        assert_eq!(
            ask(&mut guest, VIRTIO_BLK_T_IN, 0, &[writable(DATA, 511)]).0,
            1
        );
        for sector in [DISK_BYTES as u64 / 512, u64::MAX, u64::MAX / 512] {
            assert_eq!(
                ask(&mut guest, VIRTIO_BLK_T_IN, sector, &[writable(DATA, 512)]).0,
                1
            );
        }
        // No status byte, no header, a device-readable part after a writable one.
        assert_eq!(guest.request(0, &[readable(HEADER, 16)]), 0);
        assert_eq!(guest.request(0, &[writable(STATUS, 1)]), 0);
        assert_eq!(
            guest.request(0, &[writable(STATUS, 1), readable(HEADER, 16)]),
            0
        );
        assert_eq!(
            guest.request(0, &[readable(1 << 40, 16), writable(STATUS, 1)]),
            0
        );
        // And the queue lives on.
        assert_eq!(
            ask(&mut guest, VIRTIO_BLK_T_IN, 0, &[writable(DATA, 512)]).0,
            0
        );
    }

    #[test]
    fn state_travels_between_machines() {
        let (_file, disk) = disk(true);
        let mut source = guest(&disk);
        assert_eq!(
            ask(&mut source, VIRTIO_BLK_T_IN, 3, &[writable(DATA, 512)]).0,
            0
        );
        source.root.pause();
        let state = source.root.save();
        let bytes = codec::encode(&state).unwrap();
        let device = Box::new(Block::new("blk0", disk.clone(), 2, "serial-7"));
        let mut target = Guest::with_memory(device, source.memory.clone());
        target
            .root
            .restore(&codec::decode(&bytes).unwrap())
            .unwrap();
        assert_eq!(target.root.save(), state);
        target.root.resume().unwrap();
        assert!(
            target.router.fired(2) > 0,
            "a lost interrupt is made up for"
        );
        target.adopt(&source);
        assert_eq!(
            ask(&mut target, VIRTIO_BLK_T_IN, 5, &[writable(DATA, 512)]).0,
            0
        );
        assert_eq!(target.memory.read_obj::<u8>(GuestAddress(DATA)).unwrap(), 5);
        let other = Box::new(Block::new("blk0", disk.clone(), 1, ""));
        assert!(Guest::new(other).root.restore(&state).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn hostile_rings_are_survived(rings in prop::collection::vec(hostile_ring(), 1..4)) {
            let (file, disk) = disk(false);
            let memory = plain_memory();
            let mut server = Server {
                disk: disk.clone(),
                serial: *b"12345678901234567890",
                counters: Arc::default(),
                writethrough: true,
            };
            for ring in rings {
                let mut queue = ring.install(&memory);
                let next = server.serve(&mut queue, &memory, &Stopping::never());
                prop_assert!(next != Next::Retry(GATE_RETRY));
                prop_assert!(queue.queue.next_used() <= ring.offered());
            }
            prop_assert_eq!(std::fs::metadata(file.path()).unwrap().len(), DISK_BYTES as u64);
        }
    }
}
