use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use shared_storage::gate::{Gate, Shut};
use shared_storage::image::{DiskOptions, Format};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Bytes, GuestAddress};

use super::super::chain::{Buffers, Table};
use super::super::testing::{
    BUFFERS_AT, Guest, Piece, hostile_ring, plain_memory, readable, wait_for, writable,
};
use super::crew::Ring;
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
    // The used ring is filled before the interrupt is raised.
    wait_for(|| guest.router.fired(2) > 0);
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

/// A gate under the test's control that also sees how many requests are under way.
#[derive(Debug, Default)]
struct TestGate {
    shut: AtomicBool,
    pause_ms: AtomicU64,
    inside: AtomicU64,
    most: AtomicU64,
    refused: AtomicU64,
    passed: AtomicU64,
}

impl Gate for TestGate {
    fn pass(&self) -> Result<(), Shut> {
        if self.shut.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(Shut);
        }
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(inside, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(self.pause_ms.load(Ordering::SeqCst)));
        self.inside.fetch_sub(1, Ordering::SeqCst);
        self.passed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Through the page cache or around it: by a crew, or by a pilot.
const WAYS: [bool; 2] = [false, true];

fn gated(direct: bool) -> (tempfile::NamedTempFile, Arc<TestGate>, Arc<Disk>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(DISK_BYTES as u64).unwrap();
    let gate = Arc::new(TestGate::default());
    let options = DiskOptions {
        direct,
        gate: gate.clone(),
        ..DiskOptions::new(file.path(), Format::Raw)
    };
    let disk = Arc::new(Disk::open(options).unwrap());
    (file, gate, disk)
}

/// Offer `count` writes of one sector each, number `n` to sector `n`, without waiting.
fn offer_writes(guest: &mut Guest, count: u16) {
    for n in 0..count {
        let at = GuestAddress(DATA + 512 * u64::from(n));
        guest.memory.write_slice(&[n as u8 + 1; 512], at).unwrap();
    }
    offer(guest, count, VIRTIO_BLK_T_OUT);
}

/// Offer `count` requests of one sector each, number `n` of sector `n`, without waiting.
fn offer(guest: &mut Guest, count: u16, kind: u32) {
    for n in 0..count {
        let header = HEADER + 0x100 * u64::from(n);
        guest.memory.write_obj(kind, GuestAddress(header)).unwrap();
        guest
            .memory
            .write_obj(u64::from(n), GuestAddress(header + 8))
            .unwrap();
        let at = DATA + 512 * u64::from(n);
        let data = if kind == VIRTIO_BLK_T_IN {
            writable(at, 512)
        } else {
            readable(at, 512)
        };
        guest.put_descriptor(1, 3 * n, readable(header, 16), Some(3 * n + 1));
        guest.put_descriptor(1, 3 * n + 1, data, Some(3 * n + 2));
        guest.put_descriptor(1, 3 * n + 2, writable(STATUS + u64::from(n), 1), None);
        guest.offer(1, 3 * n);
    }
}

fn assert_written(file: &tempfile::NamedTempFile, count: u16) {
    let content = std::fs::read(file.path()).unwrap();
    for n in 0..usize::from(count) {
        assert_eq!(
            content[512 * n..512 * (n + 1)],
            [n as u8 + 1; 512],
            "sector {n}"
        );
    }
}

#[test]
fn slow_requests_are_carried_out_side_by_side() {
    let (file, gate, disk) = gated(false);
    let mut guest = guest(&disk);
    gate.pause_ms.store(5, Ordering::SeqCst);
    for round in 1..=20 {
        offer_writes(&mut guest, 5);
        wait_for(|| guest.used(1) == 5 * round);
        assert_written(&file, 5);
        if gate.most.load(Ordering::SeqCst) >= 4 {
            return;
        }
    }
    panic!("at most {:?} requests were under way at once", gate.most);
}

/// As many writes as there is room for in the ring, all offered before anything is served: by a
/// pilot they go together.
#[test]
fn what_is_offered_together_goes_together_and_ends_whole() {
    let (file, gate, disk) = gated(true);
    let mut guest = guest(&disk);
    for _ in 0..50 {
        let before = guest.used(1);
        guest.root.pause();
        offer_writes(&mut guest, 5);
        guest.root.resume().unwrap();
        wait_for(|| guest.used(1) == before + 5);
        assert_written(&file, 5);
        assert_eq!(ask(&mut guest, VIRTIO_BLK_T_FLUSH, 0, &[]), (0, 1));
        let sector = [writable(DATA, 512), writable(DATA + 0x2000, 512)];
        guest.clean();
        assert_eq!(ask(&mut guest, VIRTIO_BLK_T_IN, 3, &sector), (0, 1025));
        assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(DATA)).unwrap(), 4);
        assert!(guest.is_dirty(DATA) && guest.is_dirty(DATA + 0x2000));
    }
    // Two questions for each batch of writes, not for each write.
    assert!(gate.passed.load(Ordering::SeqCst) < 50 * 5 * 2);
}

#[test]
fn reads_that_go_together_mark_what_they_fill() {
    let (file, _, disk) = gated(true);
    let content: Vec<u8> = (0..DISK_BYTES).map(|at| (at / 512) as u8).collect();
    std::fs::write(file.path(), content).unwrap();
    let mut guest = guest(&disk);
    guest.root.pause();
    offer(&mut guest, 5, VIRTIO_BLK_T_IN);
    guest.clean();
    guest.root.resume().unwrap();
    wait_for(|| guest.used(1) == 5);
    for n in 0..5u64 {
        let at = DATA + 512 * n;
        assert_eq!(
            guest.memory.read_obj::<u8>(GuestAddress(at)).unwrap(),
            n as u8
        );
        assert!(guest.is_dirty(at) && guest.is_dirty(STATUS + n));
        assert_eq!(guest.used_element(1, n as u16).1, 513);
    }
}

#[test]
fn requests_wait_behind_a_shut_gate_and_travel_with_the_guest() {
    for direct in WAYS {
        wait_behind_a_shut_gate(direct);
    }
}

fn wait_behind_a_shut_gate(direct: bool) {
    let (file, gate, disk) = gated(direct);
    let mut source = guest(&disk);
    gate.shut.store(true, Ordering::SeqCst);
    offer_writes(&mut source, 5);
    wait_for(|| gate.refused.load(Ordering::SeqCst) >= 3);
    assert_eq!(source.used(1), 0);
    source.root.pause();
    let refused = gate.refused.load(Ordering::SeqCst);
    let state = source.root.save();
    let device = Box::new(Block::new("blk0", disk.clone(), 2, "serial-7"));
    let target = Guest::with_memory(device, source.memory.clone());
    target.root.restore(&state).unwrap();
    assert_eq!(
        gate.refused.load(Ordering::SeqCst),
        refused,
        "a paused device is silent"
    );
    gate.shut.store(false, Ordering::SeqCst);
    target.root.resume().unwrap();
    wait_for(|| target.used(1) == 5);
    assert_written(&file, 5);
    for n in 0..5 {
        assert_eq!(
            target
                .memory
                .read_obj::<u8>(GuestAddress(STATUS + n))
                .unwrap(),
            0
        );
    }
}

#[test]
fn pausing_in_the_midst_of_requests_loses_none() {
    for direct in WAYS {
        pause_in_the_midst(direct);
    }
}

fn pause_in_the_midst(direct: bool) {
    let (file, gate, disk) = gated(direct);
    let mut guest = guest(&disk);
    gate.pause_ms.store(1, Ordering::SeqCst);
    for round in 1..=10 {
        offer_writes(&mut guest, 5);
        guest.root.pause();
        let inside = gate.inside.load(Ordering::SeqCst);
        assert_eq!(inside, 0, "nothing is in flight");
        guest.root.resume().unwrap();
        wait_for(|| guest.used(1) == 5 * round);
        assert_written(&file, 5);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn hostile_rings_are_survived(rings in prop::collection::vec(hostile_ring(), 1..4)) {
        let (file, disk) = disk(false);
        let memory = plain_memory();
        let executor = Executor {
            disk: disk.clone(),
            serial: *b"12345678901234567890",
            counters: Arc::default(),
            writethrough: true,
        };
        let mut buffers = Buffers::default();
        for hostile in &rings {
            let active = hostile.install(&memory);
            let table = Table::from(&active.queue);
            let mut ring = Ring::new(0, active.queue, active.interrupt, Vec::new());
            let mut taken = 0;
            while let Ok(Some(head)) = ring.take(&memory) {
                taken += 1;
                let written = executor.run(&memory, table, head, &mut buffers);
                if ring.complete(&memory, head, written.unwrap()).is_err() {
                    break;
                }
            }
            prop_assert!(taken <= hostile.offered());
        }
        prop_assert_eq!(std::fs::metadata(file.path()).unwrap().len(), DISK_BYTES as u64);
    }
}
