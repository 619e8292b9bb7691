//! Virtio over PCI (virtio 1.2 §4.1): one function with one BAR.
//!
//! ```text
//!   BAR 0   0x0000 common configuration     0x3000 notify, 4 bytes per queue
//!           0x1000 ISR status               0x4000 MSI-X table
//!           0x2000 device configuration     0x5000 MSI-X pending bits
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use serde::{Deserialize, Serialize};
use tracing::{debug, warn};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::common::{COMMON_BYTES, CommonConfig, CommonState, Effect};
use super::{Activation, ActiveQueue, QueueInterrupt, VirtioDevice};
use crate::codec;
use crate::interrupt::{Doorbells, MsiRouter};
use crate::memory::GuestMemory;
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::msix::{self, Msix, MsixState};
use crate::pci::{FunctionState, PciFunction};

/// Layout of [`FunctionState::bytes`] as this file writes it.
pub const STATE_VERSION: u16 = 1;

const VENDOR_VIRTIO: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;
const REVISION: u8 = 1;
const BAR: usize = 0;
const BAR_BYTES: u32 = 0x8000;
const ISR_AT: u64 = 0x1000;
const DEVICE_AT: u64 = 0x2000;
const NOTIFY_AT: u64 = 0x3000;
const TABLE_AT: u64 = 0x4000;
const PENDING_AT: u64 = 0x5000;
const PENDING_END: u64 = 0x6000;
const NOTIFY_BYTES: u64 = 4;
const MAX_QUEUES: usize = 128;

const VENDOR_CAPABILITY: u8 = 0x09;
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_PCI_CFG: u8 = 5;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// What a virtio function needs from the machine around it.
#[derive(Clone)]
pub struct Wiring {
    /// Guest-physical memory.
    pub memory: Arc<GuestMemory>,
    /// Routes MSI-X vectors.
    pub router: Arc<dyn MsiRouter>,
    /// Catches queue notifications inside the kernel.
    pub doorbells: Arc<dyn Doorbells>,
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    config: ConfigSpace,
    msix_capability: usize,
    window_capability: usize,
    msix: Arc<Msix>,
    common: CommonConfig,
    isr: Arc<AtomicU8>,
    bells: Vec<EventFd>,
    bells_at: Option<u64>,
    device: Box<dyn VirtioDevice>,
    wiring: Wiring,
    running: bool,
    paused: bool,
    arrived: bool,
}

#[derive(Serialize, Deserialize)]
struct TransportState {
    msix: MsixState,
    common: CommonState,
    isr: u8,
    device: Vec<u8>,
}

impl VirtioPci {
    /// Wrap `device`; add the result to the bus with [`crate::pci::PciRoot::add`].
    pub fn new(device: Box<dyn VirtioDevice>, wiring: Wiring) -> io::Result<Self> {
        let queues = device.queue_sizes().len();
        if queues == 0 || queues > MAX_QUEUES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a virtio device has 1 to {MAX_QUEUES} queues, not {queues}"),
            ));
        }
        let vectors = queues + 1;
        let mut config = ConfigSpace::new(identity(device.device_type()));
        config.add_bar(BAR, BAR_BYTES);
        let (body, writable) = msix::capability(
            vectors as u16,
            BAR as u32,
            TABLE_AT as u32,
            PENDING_AT as u32,
        );
        let msix_capability = config.add_capability(msix::CAPABILITY_ID, &body, &writable);
        let window_capability = add_virtio_capabilities(&mut config, queues as u64);
        let common = CommonConfig::new(device.features(), device.queue_sizes(), vectors as u16);
        Ok(Self {
            config,
            msix_capability,
            window_capability,
            msix: Arc::new(Msix::new(vectors, wiring.router.clone())?),
            common,
            isr: Arc::default(),
            bells: (0..queues)
                .map(|_| EventFd::new(EFD_NONBLOCK))
                .collect::<io::Result<_>>()?,
            bells_at: None,
            device,
            wiring,
            running: false,
            paused: false,
            arrived: false,
        })
    }

    /// The driver said `DRIVER_OK`, or the guest resumes.
    fn start(&mut self) {
        if self.running || self.paused || !self.common.driver_ok() {
            return;
        }
        let Some(queues) = self.common.build_queues(&self.wiring.memory) else {
            debug!("the guest configured a virtio queue outside its memory");
            self.fail();
            return;
        };
        let started = self
            .activation(queues)
            .and_then(|activation| self.device.start(activation));
        match started {
            Ok(()) => {
                self.running = true;
                // Whatever the guest put into the rings while nobody listened is found now.
                for bell in &self.bells {
                    let _ = bell.write(1);
                }
            }
            Err(error) => {
                warn!(%error, device = self.device.device_type(), "cannot start a virtio device");
                self.fail();
            }
        }
    }

    fn activation(&self, queues: Vec<(u16, virtio_queue::Queue)>) -> io::Result<Activation> {
        let queues = queues
            .into_iter()
            .map(|(index, queue)| {
                let at = usize::from(index);
                Ok(ActiveQueue {
                    index,
                    queue,
                    doorbell: self.bells[at].try_clone()?,
                    interrupt: self.queue_interrupt(at),
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Activation {
            memory: self.wiring.memory.clone(),
            features: self.common.features(),
            queues,
            config_changed: self.config_interrupt(),
        })
    }

    fn queue_interrupt(&self, index: usize) -> Arc<dyn QueueInterrupt> {
        Arc::new(VectorInterrupt {
            msix: self.msix.clone(),
            vector: self.common.queue_vectors[index].clone(),
            isr: self.isr.clone(),
            isr_bit: ISR_QUEUE,
            generation: None,
        })
    }

    fn config_interrupt(&self) -> Arc<dyn QueueInterrupt> {
        Arc::new(VectorInterrupt {
            msix: self.msix.clone(),
            vector: self.common.config_vector.clone(),
            isr: self.isr.clone(),
            isr_bit: ISR_CONFIG,
            generation: Some(self.common.generation.clone()),
        })
    }

    /// Only a reset by the driver helps (virtio 1.2 §2.1.2).
    fn fail(&mut self) {
        self.common.needs_reset();
        if self.common.status() & super::common::status::DRIVER_OK != 0 {
            let _ = self.config_interrupt().used();
        }
    }

    fn stop(&mut self) {
        if std::mem::take(&mut self.running) {
            for queue in self.device.stop() {
                self.common.queue_stopped(queue.index, &queue.queue);
            }
        }
    }

    fn reset_device(&mut self) {
        self.stop();
        self.device.reset();
        self.common.reset();
        self.isr.store(0, Ordering::Release);
        for bell in &self.bells {
            let _ = bell.read();
        }
    }

    fn ring(&self, offset: u64) {
        let index = usize::try_from(offset / NOTIFY_BYTES).unwrap_or(usize::MAX);
        if let Some(bell) = self.bells.get(index) {
            let _ = bell.write(1);
        }
    }

    /// The register window of §4.1.4.9: a BAR access by way of configuration space.
    fn window(&self) -> Option<(u64, usize)> {
        let at = self.window_capability;
        let bar = self.config.u32_at(at + 4) & 0xff;
        let offset = u64::from(self.config.u32_at(at + 8));
        let length = self.config.u32_at(at + 12) as usize;
        let fits = bar as usize == BAR
            && matches!(length, 1 | 2 | 4)
            && offset.is_multiple_of(length as u64)
            && offset < u64::from(BAR_BYTES);
        fits.then_some((offset, length))
    }

    fn touches_window(&self, offset: u64, bytes: usize) -> bool {
        let data = self.window_capability as u64 + 16;
        offset < data + 4 && offset.saturating_add(bytes as u64) > data
    }
}

impl PciFunction for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        if self.touches_window(offset, data.len())
            && let Some((at, length)) = self.window()
        {
            let mut value = [0; 4];
            self.read_bar(BAR, at, &mut value[..length]);
            self.config.put(self.window_capability + 16, &value);
        }
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.config.write(offset, data);
        self.msix
            .set_control(self.config.u16_at(self.msix_capability + 2));
        if self.touches_window(offset, data.len())
            && let Some((at, length)) = self.window()
        {
            let value = self
                .config
                .u32_at(self.window_capability + 16)
                .to_le_bytes();
            self.write_bar(BAR, at, &value[..length]);
        }
    }

    fn read_bar(&mut self, _bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            0..ISR_AT => self.common.read(offset, data),
            ISR_AT => {
                if let Some(first) = data.first_mut() {
                    *first = self.isr.swap(0, Ordering::AcqRel);
                }
            }
            DEVICE_AT..NOTIFY_AT => self.device.read_config(offset - DEVICE_AT, data),
            TABLE_AT..PENDING_AT => self.msix.read_table(offset - TABLE_AT, data),
            PENDING_AT..PENDING_END => self.msix.read_pending(offset - PENDING_AT, data),
            _ => {}
        }
    }

    fn write_bar(&mut self, _bar: usize, offset: u64, data: &[u8]) {
        match offset {
            0..COMMON_BYTES => match self.common.write(offset, data) {
                Effect::Reset => self.reset_device(),
                Effect::Start => self.start(),
                Effect::None => {}
            },
            DEVICE_AT..NOTIFY_AT => self.device.write_config(offset - DEVICE_AT, data),
            NOTIFY_AT..TABLE_AT => self.ring(offset - NOTIFY_AT),
            TABLE_AT..PENDING_AT => self.msix.write_table(offset - TABLE_AT, data),
            _ => {}
        }
    }

    fn bars_changed(&mut self) {
        let now = self.config.bar_range(BAR).map(|range| range.start);
        if now == self.bells_at {
            return;
        }
        for (bell, at) in self
            .bells
            .iter()
            .zip((NOTIFY_AT..).step_by(NOTIFY_BYTES as usize))
        {
            if let Some(base) = self.bells_at {
                let _ = self.wiring.doorbells.unregister(base + at, bell);
            }
            if let Some(base) = now
                && let Err(error) = self.wiring.doorbells.register(base + at, bell)
            {
                debug!(address = base + at, %error, "a doorbell stays with write exits");
            }
        }
        self.bells_at = now;
    }

    fn pause(&mut self) {
        self.stop();
        self.paused = true;
    }

    fn resume(&mut self) -> io::Result<()> {
        self.paused = false;
        self.start();
        if self.common.driver_ok() && !self.running {
            return Err(io::Error::other("the device did not start; see the log"));
        }
        // An interrupt that was under way on the source may have been lost with it; one too
        // many only makes the driver look at its rings.
        if std::mem::take(&mut self.arrived) && self.running {
            for index in 0..self.common.queues() {
                self.queue_interrupt(index).used()?;
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.reset_device();
        self.msix.reset();
        let control = self.msix_capability as u64 + 2;
        self.config.write(control, &[0, 0]);
        self.paused = false;
        self.arrived = false;
    }

    fn save(&self) -> FunctionState {
        let state = TransportState {
            msix: self.msix.save(),
            common: self.common.save(),
            isr: self.isr.load(Ordering::Acquire),
            device: self.device.save(),
        };
        FunctionState {
            version: STATE_VERSION,
            config: self.config.save(),
            bytes: codec::encode(&state).expect("a virtio state is far below the codec limit"),
        }
    }

    fn restore(&mut self, state: &FunctionState) -> io::Result<()> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        if state.version != STATE_VERSION {
            return Err(invalid(format!(
                "the saved virtio state has version {}, this program knows {STATE_VERSION}",
                state.version
            )));
        }
        let saved: TransportState = codec::decode(&state.bytes)?;
        if !self.common.restore(&saved.common) {
            return Err(invalid(format!(
                "the saved state does not fit virtio device {}: its queues or features differ",
                self.device.device_type()
            )));
        }
        self.config.restore(&state.config)?;
        self.msix.restore(&saved.msix)?;
        self.isr.store(saved.isr, Ordering::Release);
        self.device.restore(&saved.device)?;
        self.bars_changed();
        self.arrived = true;
        Ok(())
    }

    fn announce(&mut self) -> io::Result<()> {
        if self.running {
            self.device.announce()
        } else {
            Ok(())
        }
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.stop();
    }
}

struct VectorInterrupt {
    msix: Arc<Msix>,
    vector: Arc<AtomicU16>,
    isr: Arc<AtomicU8>,
    isr_bit: u8,
    generation: Option<Arc<AtomicU8>>,
}

impl QueueInterrupt for VectorInterrupt {
    fn used(&self) -> io::Result<()> {
        if let Some(generation) = &self.generation {
            generation.fetch_add(1, Ordering::AcqRel);
        }
        self.isr.fetch_or(self.isr_bit, Ordering::AcqRel);
        self.msix.raise(self.vector.load(Ordering::Acquire))
    }
}

fn identity(device_type: u32) -> Identity {
    const NETWORK: u32 = 1;
    const BLOCK: u32 = 2;
    let class = match device_type {
        NETWORK => [0x02, 0x00, 0x00],
        BLOCK => [0x01, 0x80, 0x00],
        _ => [0xff, 0x00, 0x00],
    };
    let id = device_type as u16;
    Identity {
        vendor: VENDOR_VIRTIO,
        device: DEVICE_BASE + id,
        subsystem: DEVICE_BASE + id,
        revision: REVISION,
        class,
    }
}

/// Adds the vendor capabilities of §4.1.4; returns the offset of the window capability.
fn add_virtio_capabilities(config: &mut ConfigSpace, queues: u64) -> usize {
    let mut add = |kind: u8, offset: u64, length: u64, tail: &[u8], writable: &[u8]| {
        let mut body = vec![16 + tail.len() as u8, kind, BAR as u8, 0, 0, 0];
        body.extend_from_slice(&(offset as u32).to_le_bytes());
        body.extend_from_slice(&(length as u32).to_le_bytes());
        body.extend_from_slice(tail);
        config.add_capability(VENDOR_CAPABILITY, &body, writable)
    };
    add(CAP_COMMON, 0, COMMON_BYTES, &[], &[]);
    add(CAP_ISR, ISR_AT, 1, &[], &[]);
    add(CAP_DEVICE, DEVICE_AT, NOTIFY_AT - DEVICE_AT, &[], &[]);
    add(
        CAP_NOTIFY,
        NOTIFY_AT,
        NOTIFY_BYTES * queues,
        &(NOTIFY_BYTES as u32).to_le_bytes(),
        &[],
    );
    // Writable: the BAR number, offset, length and data.
    let mut writable = [0xff; 18];
    writable[..2].fill(0);
    writable[3..6].fill(0);
    add(CAP_PCI_CFG, 0, 0, &[0; 4], &writable)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::common::status;
    use std::os::unix::net::UnixDatagram;

    use shared_storage::image::{Disk, DiskOptions, Format};

    use super::super::block::Block;
    use super::super::net::{MacAddress, Net};
    use super::super::tap::Tap;
    use super::super::testing::{Guest, WINDOW, hostile_ring};
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
        fn read_config(&self, _offset: u64, data: &mut [u8]) {
            data.fill(7);
        }
        fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
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

    /// Each of the real devices, freshly made: the same again for the same `which`.
    fn real(which: u8, image: &std::path::Path, wire: &UnixDatagram) -> Guest {
        let device: Box<dyn VirtioDevice> = match which % 3 {
            0 => {
                let options = DiskOptions {
                    readonly: true,
                    ..DiskOptions::new(image, Format::Raw)
                };
                Box::new(Block::new(
                    "blk",
                    Arc::new(Disk::open(options).unwrap()),
                    2,
                    "s",
                ))
            }
            1 => {
                let tap = Tap::fake(wire.try_clone().unwrap().into());
                Box::new(Net::new("net", MacAddress([2, 0, 0, 0, 0, 1]), tap))
            }
            _ => Box::new(crate::devices::virtio::rng::Rng::new()),
        };
        Guest::new(device)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn running_devices_survive_hostile_drivers_and_travel(
            which in any::<u8>(),
            ring in hostile_ring(),
            features in prop_oneof![3 => Just(u64::MAX), 1 => any::<u64>()],
            accesses in prop::collection::vec(
                (0..5u8, any::<u64>(), prop::collection::vec(any::<u8>(), 1..9)), 0..48),
        ) {
            let image = tempfile::NamedTempFile::new().unwrap();
            image.as_file().set_len(64 << 10).unwrap();
            let (ours, theirs) = UnixDatagram::pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            ours.send(&[7; 100]).unwrap();
            let mut guest = real(which, image.path(), &theirs);
            guest.up(features | 1 << 32);
            ring.install(&guest.memory);
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
            let fresh = real(which, image.path(), &theirs);
            fresh.root.restore(&state).unwrap();
            prop_assert_eq!(fresh.root.save(), state);
            let _ = fresh.root.resume();
        }
    }
}
