use proptest::prelude::*;

use super::super::common::status;
use std::os::unix::net::UnixDatagram;

use shared_storage::image::{Disk, DiskOptions, Format};

use super::super::block::Block;
use super::super::net::Net;
use super::super::tap::Tap;
use super::super::testing::{Guest, WINDOW, hostile_ring};
use super::layout::{CAP_PCI_CFG, VENDOR_CAPABILITY};
use super::*;
use crate::bus::BusDevice;

/// A device that only notes what happens to it.
struct Idle {
    queues: Vec<ActiveQueue>,
    refuse: bool,
}

impl VirtioDevice for Idle {
    fn device_type(&self) -> u32 {
        4
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 256]
    }
    fn features(&self) -> u64 {
        1 << 32 | 1 << 29 | 1
    }
    fn config(&self) -> Vec<u8> {
        vec![7; 8]
    }
    fn start(&mut self, activation: Activation) -> io::Result<()> {
        assert!(self.queues.is_empty());
        if self.refuse {
            return Err(io::Error::other("refused"));
        }
        self.queues = activation.queues;
        Ok(())
    }
    fn stop(&mut self) -> Vec<ActiveQueue> {
        std::mem::take(&mut self.queues)
    }
    fn reset(&mut self) {
        assert!(self.queues.is_empty());
    }
    fn save(&self) -> Vec<u8> {
        vec![1]
    }
    fn restore(&mut self, state: &[u8]) -> io::Result<()> {
        if state == [1] {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }
}

fn idle(refuse: bool) -> Guest {
    Guest::new(Box::new(Idle {
        queues: Vec::new(),
        refuse,
    }))
}

#[test]
fn features_must_agree_before_the_driver_may_run() {
    let mut guest = idle(false);
    assert_eq!(guest.offered(), 1 << 32 | 1 << 29 | 1);
    guest.write(20, &[status::ACKNOWLEDGE | status::DRIVER]);
    guest.write(20, &[status::FEATURES_OK]);
    assert_eq!(guest.status() & status::FEATURES_OK, 0, "without VERSION_1");
    guest.write(8, &1u32.to_le_bytes());
    guest.write(12, &3u32.to_le_bytes());
    guest.write(20, &[status::FEATURES_OK | status::DRIVER_OK]);
    assert_eq!(
        guest.status(),
        status::ACKNOWLEDGE | status::DRIVER,
        "not offered"
    );
    guest.up(u64::MAX);
    assert_eq!(guest.status() & status::NEEDS_RESET, 0);
    guest.write(20, &[0]);
    assert_eq!(guest.status(), 0);
}

#[test]
fn a_device_that_cannot_start_needs_a_reset() {
    let mut guest = idle(true);
    guest.up(u64::MAX);
    assert!(guest.status() & status::NEEDS_RESET != 0);
    assert_eq!(guest.router.fired(0), 1);
}

#[test]
fn queues_outside_memory_are_refused() {
    let mut guest = idle(false);
    guest.up(u64::MAX);
    guest.write(20, &[0]);
    guest.write(20, &[status::ACKNOWLEDGE | status::DRIVER]);
    guest.write(8, &1u32.to_le_bytes());
    guest.write(12, &1u32.to_le_bytes());
    guest.write(20, &[status::FEATURES_OK]);
    guest.write(32, &u64::MAX.to_le_bytes());
    guest.write(28, &1u16.to_le_bytes());
    guest.write(20, &[status::DRIVER_OK]);
    assert!(guest.status() & status::NEEDS_RESET != 0);
}

#[test]
fn doorbells_follow_the_bar() {
    let mut guest = idle(false);
    let base = u64::from(WINDOW.base);
    assert_eq!(
        *guest.bells.0.lock().unwrap(),
        [base + 0x3000, base + 0x3004]
    );
    let mut ecam = guest.root.ecam();
    ecam.write((1 << 15) + 0x10, &(WINDOW.base + 0x8000).to_le_bytes());
    assert_eq!(
        *guest.bells.0.lock().unwrap(),
        [base + 0xb000, base + 0xb004]
    );
    assert_eq!(guest.read::<2>(18), [0xff; 2]);
    assert_eq!(guest.read::<2>(0x8000 + 18), [2, 0]);
    ecam.write((1 << 15) + 4, &[0, 0]);
    assert!(guest.bells.0.lock().unwrap().is_empty());
    guest.root.reset();
    assert_eq!(
        *guest.bells.0.lock().unwrap(),
        [base + 0x3000, base + 0x3004]
    );
    guest.up(u64::MAX);
}

#[test]
fn the_configuration_window_reaches_the_bar() {
    let guest = idle(false);
    let mut ecam = guest.root.ecam();
    let mut at = [0x34u8];
    let mut kind = [0; 4];
    ecam.read((1 << 15) + 0x34, &mut at);
    while kind[0] != VENDOR_CAPABILITY || kind[3] != CAP_PCI_CFG {
        ecam.read((1 << 15) + u64::from(at[0]), &mut kind);
        if kind[3] != CAP_PCI_CFG || kind[0] != VENDOR_CAPABILITY {
            at[0] = kind[1];
        }
    }
    let window = (1 << 15) + u64::from(at[0]);
    ecam.write(window + 8, &18u32.to_le_bytes());
    ecam.write(window + 12, &2u32.to_le_bytes());
    let mut data = [0; 4];
    ecam.read(window + 16, &mut data);
    assert_eq!(data[..2], [2, 0]);
    ecam.write(window + 8, &20u32.to_le_bytes());
    ecam.write(window + 12, &1u32.to_le_bytes());
    ecam.write(window + 16, &[status::ACKNOWLEDGE]);
    ecam.read(window + 16, &mut data);
    assert_eq!(data[0], status::ACKNOWLEDGE);
}

#[test]
fn how_far_a_queue_got_survives_a_pause() {
    let mut guest = idle(false);
    guest.up(u64::MAX);
    guest.root.pause();
    let mut state = guest.root.save();
    let mut transport: TransportState = codec::decode(&state.functions[1].bytes).unwrap();
    assert_eq!(transport.common.queues[1].next_avail, 0);
    transport.common.queues[1].next_avail = 9;
    transport.common.queues[1].next_used = 8;
    state.functions[1].bytes = codec::encode(&transport).unwrap();
    guest.root.restore(&state).unwrap();
    guest.root.resume().unwrap();
    guest.root.pause();
    let after = guest.root.save();
    let after: TransportState = codec::decode(&after.functions[1].bytes).unwrap();
    assert_eq!(after.common, transport.common);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_access_panics_and_every_state_can_be_restored(
        accesses in prop::collection::vec(
            (0..4u8, any::<u64>(), prop::collection::vec(any::<u8>(), 1..9)), 0..128),
        up in any::<bool>(),
    ) {
        let mut guest = idle(false);
        if up {
            guest.up(u64::MAX);
        }
        let mut ecam = guest.root.ecam();
        for (which, at, mut data) in accesses {
            match which {
                0 => guest.write(at % 60, &data),
                1 => guest.write(at % 0x8000, &data),
                2 => {
                    ecam.write((1 << 15) + at % 256, &data);
                    ecam.read((1 << 15) + at % 256, &mut data);
                }
                _ => { guest.read::<8>(at % 0x8000); }
            }
        }
        guest.root.pause();
        let state = guest.root.save();
        let fresh = idle(false);
        fresh.root.restore(&state).unwrap();
        prop_assert_eq!(fresh.root.save(), state);
    }

    #[test]
    fn damaged_states_are_refused_or_harmless(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)
    ) {
        let mut guest = idle(false);
        guest.up(u64::MAX);
        guest.root.pause();
        let mut state = guest.root.save();
        for (at, value) in damage {
            let bytes = &mut state.functions[1].bytes;
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let fresh = idle(false);
        if fresh.root.restore(&state).is_ok() {
            let _ = fresh.root.resume();
        }
    }
}

/// The real devices.
#[derive(Debug, Clone, Copy)]
enum Real {
    FixedDisk,
    RawDisk,
    Qcow2Disk,
    Net,
    Rng,
}

impl Real {
    fn any() -> impl Strategy<Value = Self> {
        prop::sample::select(vec![
            Self::FixedDisk,
            Self::RawDisk,
            Self::Qcow2Disk,
            Self::Net,
            Self::Rng,
        ])
    }

    fn format(self) -> Format {
        match self {
            Self::Qcow2Disk => Format::Qcow2,
            _ => Format::Raw,
        }
    }

    /// Freshly made on `image` and `wire`: the same again each time.
    fn make(self, image: &std::path::Path, wire: &UnixDatagram) -> Guest {
        let device: Box<dyn VirtioDevice> = match self {
            Self::FixedDisk | Self::RawDisk | Self::Qcow2Disk => {
                let options = DiskOptions {
                    readonly: matches!(self, Self::FixedDisk),
                    ..DiskOptions::new(image, self.format())
                };
                let disk = Arc::new(Disk::open(options).unwrap());
                Box::new(Block::new("blk", disk, 2, "s"))
            }
            Self::Net => {
                let tap = Tap::fake(wire.try_clone().unwrap().into());
                Box::new(Net::new("net", vmm_core::mac::Mac([2, 0, 0, 0, 0, 1]), tap))
            }
            Self::Rng => Box::new(crate::devices::virtio::rng::Rng::new()),
        };
        Guest::new(device)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn running_devices_survive_hostile_drivers_and_travel(
        real in Real::any(),
        rings in [hostile_ring(), hostile_ring()],
        features in prop_oneof![3 => Just(u64::MAX), 1 => any::<u64>()],
        accesses in prop::collection::vec(
            (0..5u8, any::<u64>(), prop::collection::vec(any::<u8>(), 1..9)), 0..48),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        shared_storage::image::create(None, &image, real.format(), 64 << 10).unwrap();
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        ours.send(&[7; 100]).unwrap();
        let mut guest = real.make(&image, &theirs);
        guest.up(features | 1 << 32);
        for (index, ring) in (0..).zip(&rings) {
            ring.install_as(index, &guest.memory);
        }
        for (kind, at, mut data) in accesses {
            match kind {
                0 => guest.write(0x3000 + at % 16, &data),
                1 => guest.write(at % 60, &data),
                2 => guest.write(0x2000 + at % 64, &data),
                3 => guest.write(at % 0x8000, &data),
                _ => guest.root.ecam().read((1 << 15) + at % 4096, &mut data),
            }
        }
        guest.root.pause();
        let state = guest.root.save();
        // Only one may have a disk.
        drop(guest);
        let fresh = real.make(&image, &theirs);
        fresh.root.restore(&state).unwrap();
        prop_assert_eq!(fresh.root.save(), state);
        let _ = fresh.root.resume();
    }
}
