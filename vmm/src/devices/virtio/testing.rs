//! A driver for tests: brings a device up through registers and rings, as a guest would.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use virtio_queue::{Queue, QueueState};
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    MemoryRegionAddress,
};
use vmm_sys_util::eventfd::EventFd;

use super::common::status;
use super::transport::{VirtioPci, Wiring};
use super::{ActiveQueue, QueueInterrupt, VirtioDevice};
use crate::bus::BusDevice;
use crate::interrupt::Doorbells;
use crate::memory::GuestMemory;
use crate::pci::msix::tests::FakeRouter;
use crate::pci::{MmioWindow, PciRoot};

pub(crate) const MEMORY_BYTES: usize = 4 << 20;
pub(crate) const WINDOW: MmioWindow = MmioWindow {
    base: 0xe000_0000,
    bytes: 0x10_0000,
};
pub(crate) const QUEUE_ENTRIES: u16 = 16;
const RINGS_AT: u64 = 0x10_0000;
const QUEUE_STRIDE: u64 = 0x4000;
pub(crate) const BUFFERS_AT: u64 = 0x20_0000;
const PATIENCE: Duration = Duration::from_secs(20);

/// Doorbells that remember where they hang.
#[derive(Default)]
pub(crate) struct FakeBells(pub Mutex<Vec<u64>>);

impl Doorbells for FakeBells {
    fn register(&self, address: u64, _bell: &EventFd) -> io::Result<()> {
        self.0.lock().unwrap().push(address);
        Ok(())
    }

    fn unregister(&self, address: u64, _bell: &EventFd) -> io::Result<()> {
        self.0.lock().unwrap().retain(|known| *known != address);
        Ok(())
    }
}

/// A machine with one virtio device in slot 1, and a driver for it.
pub(crate) struct Guest {
    pub memory: Arc<GuestMemory>,
    pub router: Arc<FakeRouter>,
    pub bells: Arc<FakeBells>,
    pub root: PciRoot,
    mmio: Box<dyn BusDevice>,
    next: Vec<u16>,
}

/// One piece of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub at: u64,
    pub bytes: u32,
    pub write: bool,
}

pub(crate) fn readable(at: u64, bytes: u32) -> Piece {
    Piece {
        at,
        bytes,
        write: false,
    }
}

pub(crate) fn writable(at: u64, bytes: u32) -> Piece {
    Piece {
        at,
        bytes,
        write: true,
    }
}

pub(crate) fn plain_memory() -> Arc<GuestMemory> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap())
}

impl Guest {
    pub(crate) fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::with_memory(device, plain_memory())
    }

    pub(crate) fn with_memory(device: Box<dyn VirtioDevice>, memory: Arc<GuestMemory>) -> Self {
        let queues = device.queue_sizes().len();
        let router = Arc::new(FakeRouter::default());
        let bells = Arc::new(FakeBells::default());
        let wiring = Wiring {
            memory: memory.clone(),
            router: router.clone(),
            doorbells: bells.clone(),
        };
        let root = PciRoot::new(WINDOW);
        root.add(Box::new(VirtioPci::new(device, wiring).unwrap()))
            .unwrap();
        let mmio = Box::new(root.mmio());
        Self {
            memory,
            router,
            bells,
            root,
            mmio,
            next: vec![0; queues],
        }
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        self.mmio.write(offset, data);
    }

    pub(crate) fn read<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.mmio.read(offset, &mut data);
        data
    }

    pub(crate) fn status(&mut self) -> u8 {
        self.read::<1>(20)[0]
    }

    pub(crate) fn config<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        self.read(0x2000 + offset)
    }

    pub(crate) fn offered(&mut self) -> u64 {
        let mut half = |select: u32| {
            self.write(0, &select.to_le_bytes());
            u64::from(u32::from_le_bytes(self.read(4)))
        };
        half(0) | half(1) << 32
    }

    /// Bring the device up with those of `features` that it offers.
    pub(crate) fn up(&mut self, features: u64) {
        let features = features & self.offered();
        self.write(20, &[0]);
        self.write(20, &[status::ACKNOWLEDGE | status::DRIVER]);
        for half in 0..2u32 {
            self.write(8, &half.to_le_bytes());
            self.write(12, &((features >> (32 * half)) as u32).to_le_bytes());
        }
        self.write(
            20,
            &[status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK],
        );
        assert!(
            self.status() & status::FEATURES_OK != 0,
            "the device refuses {features:#x}"
        );
        // Vector 0 for configuration changes, then one per queue; all unmasked.
        self.write(16, &0u16.to_le_bytes());
        for queue in 0..self.next.len() as u64 {
            let base = RINGS_AT + queue * QUEUE_STRIDE;
            self.memory
                .write_slice(&[0; QUEUE_STRIDE as usize], GuestAddress(base))
                .unwrap();
            self.write(22, &(queue as u16).to_le_bytes());
            self.write(24, &QUEUE_ENTRIES.to_le_bytes());
            self.write(26, &(queue as u16 + 1).to_le_bytes());
            self.write(32, &base.to_le_bytes());
            self.write(40, &(base + 0x1000).to_le_bytes());
            self.write(48, &(base + 0x2000).to_le_bytes());
            self.write(28, &1u16.to_le_bytes());
            self.next[queue as usize] = 0;
        }
        for vector in 0..=self.next.len() as u64 {
            self.write(0x4000 + vector * 16, &0xfee0_0000u64.to_le_bytes());
            self.write(0x4000 + vector * 16 + 8, &(0x30 + vector).to_le_bytes());
        }
        self.enable_msix();
        let ok = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        self.write(20, &[ok]);
    }

    /// Go on where the driver of `other` stood (the same guest on another host).
    pub(crate) fn adopt(&mut self, other: &Self) {
        self.next.clone_from(&other.next);
    }

    fn enable_msix(&mut self) {
        let mut ecam = self.root.ecam();
        let function = 1 << 15;
        let mut at = [0x34];
        ecam.read(function + 0x34, &mut at);
        loop {
            let mut capability = [0; 2];
            ecam.read(function + u64::from(at[0]), &mut capability);
            if capability[0] == 0x11 {
                ecam.write(function + u64::from(at[0]) + 2, &0x8000u16.to_le_bytes());
                return;
            }
            at[0] = capability[1];
        }
    }

    fn ring(queue: usize) -> u64 {
        RINGS_AT + queue as u64 * QUEUE_STRIDE
    }

    pub(crate) fn put_descriptor(&self, queue: usize, index: u16, piece: Piece, next: Option<u16>) {
        let at = Self::ring(queue) + 16 * u64::from(index);
        let flags = u16::from(next.is_some()) | u16::from(piece.write) << 1;
        self.memory.write_obj(piece.at, GuestAddress(at)).unwrap();
        self.memory
            .write_obj(piece.bytes, GuestAddress(at + 8))
            .unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory
            .write_obj(next.unwrap_or(0), GuestAddress(at + 14))
            .unwrap();
    }

    /// Make `head` available and ring.
    pub(crate) fn offer(&mut self, queue: usize, head: u16) {
        let avail = Self::ring(queue) + 0x1000;
        let slot = u64::from(self.next[queue] % QUEUE_ENTRIES);
        self.memory
            .write_obj(head, GuestAddress(avail + 4 + 2 * slot))
            .unwrap();
        self.next[queue] = self.next[queue].wrapping_add(1);
        self.memory
            .write_obj(self.next[queue], GuestAddress(avail + 2))
            .unwrap();
        self.write(0x3000 + 4 * queue as u64, &(queue as u16).to_le_bytes());
    }

    pub(crate) fn used(&self, queue: usize) -> u16 {
        self.memory
            .read_obj(GuestAddress(Self::ring(queue) + 0x2002))
            .unwrap()
    }

    /// The used element number `index`: head and length.
    pub(crate) fn used_element(&self, queue: usize, index: u16) -> (u32, u32) {
        let at = Self::ring(queue) + 0x2004 + 8 * u64::from(index % QUEUE_ENTRIES);
        let id = self.memory.read_obj(GuestAddress(at)).unwrap();
        (id, self.memory.read_obj(GuestAddress(at + 4)).unwrap())
    }

    /// Offer one request at descriptor 0.. and wait for it; returns its used length.
    pub(crate) fn request(&mut self, queue: usize, pieces: &[Piece]) -> u32 {
        for (index, piece) in pieces.iter().enumerate() {
            let next = (index + 1 < pieces.len()).then_some(index as u16 + 1);
            self.put_descriptor(queue, index as u16, *piece, next);
        }
        let before = self.used(queue);
        self.offer(queue, 0);
        wait_for(|| self.used(queue) != before);
        self.used_element(queue, before).1
    }

    pub(crate) fn is_dirty(&self, at: u64) -> bool {
        let region = self.memory.find_region(GuestAddress(at)).unwrap();
        let offset = MemoryRegionAddress(at);
        region.bitmap().dirty_at(offset.0 as usize)
    }

    pub(crate) fn clean(&self) {
        for region in self.memory.iter() {
            let mapping: &vm_memory::MmapRegion<_> = region;
            mapping.bitmap().reset();
        }
    }
}

/// Wait until `done`, with a bound.
pub(crate) fn wait_for(mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(
            begin.elapsed() < PATIENCE,
            "nothing happened in {PATIENCE:?}"
        );
        std::thread::yield_now();
    }
}

/// Raises nothing.
struct Silent;

impl QueueInterrupt for Silent {
    fn used(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What a hostile driver leaves in a ring.
#[derive(Debug, Clone)]
pub(crate) struct HostileRing {
    descriptors: Vec<(u64, u32, u16, u16)>,
    indirect: Vec<(u64, u32, u16, u16)>,
    heads: Vec<u16>,
    avail_index: u16,
    event_idx: bool,
    requests: Vec<(u32, u64)>,
}

const INDIRECT_AT: u64 = BUFFERS_AT + 0x8000;

/// Rings that are mostly plausible, so that devices get far before they stumble.
pub(crate) fn hostile_ring() -> impl Strategy<Value = HostileRing> {
    let inside = (0u64..64).prop_map(|at| BUFFERS_AT + at * 16);
    let address = prop_oneof![
        8 => inside,
        1 => Just(INDIRECT_AT),
        1 => (0..32u64).prop_map(|back| MEMORY_BYTES as u64 - back),
        1 => any::<u64>(),
        1 => Just(RINGS_AT),
    ];
    let length = prop_oneof![
        4 => prop::sample::select(vec![0u32, 1, 12, 16, 17, 20, 64, 512, 1024, 4096]),
        1 => any::<u32>(),
        1 => Just(u32::MAX),
    ];
    let flags = prop_oneof![8 => 0u16..4, 2 => 4u16..8, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0u16..QUEUE_ENTRIES, 1 => any::<u16>()];
    let table = prop::collection::vec((address, length, flags, next), usize::from(QUEUE_ENTRIES));
    let kind = prop_oneof![
        4 => prop::sample::select(vec![0u32, 1, 4, 8, 11, 13]),
        1 => any::<u32>(),
    ];
    let sector = prop_oneof![4 => 0u64..140, 1 => any::<u64>()];
    (
        table.clone(),
        table,
        prop::collection::vec(prop_oneof![8 => 0..QUEUE_ENTRIES, 1 => any::<u16>()], 16),
        prop_oneof![8 => 0..=QUEUE_ENTRIES, 1 => any::<u16>()],
        any::<bool>(),
        prop::collection::vec((kind, sector), 64),
    )
        .prop_map(
            |(descriptors, indirect, heads, avail_index, event_idx, requests)| HostileRing {
                descriptors,
                indirect,
                heads,
                avail_index,
                event_idx,
                requests,
            },
        )
}

impl HostileRing {
    /// Lay the ring out in `memory`, as the first queue's.
    pub(crate) fn install(&self, memory: &GuestMemory) -> ActiveQueue {
        self.install_as(0, memory)
    }

    /// Lay the ring out in `memory`, as that of queue `index`.
    pub(crate) fn install_as(&self, index: u16, memory: &GuestMemory) -> ActiveQueue {
        let base = Guest::ring(index.into());
        let tables = [(base, &self.descriptors), (INDIRECT_AT, &self.indirect)];
        for (at, table) in tables {
            for (n, (address, length, flags, next)) in table.iter().enumerate() {
                let at = at + 16 * n as u64;
                memory.write_obj(*address, GuestAddress(at)).unwrap();
                memory.write_obj(*length, GuestAddress(at + 8)).unwrap();
                memory.write_obj(*flags, GuestAddress(at + 12)).unwrap();
                memory.write_obj(*next, GuestAddress(at + 14)).unwrap();
            }
        }
        for (n, (kind, sector)) in self.requests.iter().enumerate() {
            let at = BUFFERS_AT + 16 * n as u64;
            memory
                .write_obj(u64::from(*kind), GuestAddress(at))
                .unwrap();
            memory.write_obj(*sector, GuestAddress(at + 8)).unwrap();
        }
        for (n, head) in self.heads.iter().enumerate() {
            let at = base + 0x1004 + 2 * n as u64;
            memory.write_obj(*head, GuestAddress(at)).unwrap();
        }
        memory
            .write_obj(self.avail_index, GuestAddress(base + 0x1002))
            .unwrap();
        let queue = Queue::try_from(QueueState {
            max_size: 256,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: self.event_idx,
            size: QUEUE_ENTRIES,
            ready: true,
            desc_table: base,
            avail_ring: base + 0x1000,
            used_ring: base + 0x2000,
        });
        ActiveQueue {
            index,
            queue: queue.unwrap(),
            doorbell: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            interrupt: Arc::new(Silent),
        }
    }

    /// How many chains an honest reading of the ring finds.
    pub(crate) fn offered(&self) -> u16 {
        if self.avail_index <= QUEUE_ENTRIES {
            self.avail_index
        } else {
            0
        }
    }
}
