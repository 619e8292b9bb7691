//! The common configuration registers (virtio 1.2 §4.1.4.3) and the status machine.
//!
//! ```text
//!            ACKNOWLEDGE, DRIVER           features agree           queues valid
//!   reset ───────────────────────► probing ─────────────► agreed ───────────────► running
//!     ▲                                     FEATURES_OK            DRIVER_OK         │
//!     │ write 0                                                 start failed         │
//!     └───────────────────────────────────────────── needs reset ◄──────────────────┘
//! ```
//!
//! This file only decides; the transport carries the [`Effect`]s out.

mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use virtio_queue::{Queue, QueueState, QueueT};

use crate::memory::GuestMemory;
pub use state::{CommonState, NO_VECTOR, QueueRegisters};

/// Bytes of the register block.
pub const COMMON_BYTES: u64 = 60;

/// Device status bits (virtio 1.2 §2.1).
pub mod status {
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is set up.
    pub const DRIVER_OK: u8 = 4;
    /// Feature negotiation is complete.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot go on.
    pub const NEEDS_RESET: u8 = 64;
    /// The driver gave up.
    pub const FAILED: u8 = 128;
}

const VERSION_1: u64 = 1 << 32;
const GUEST_STATUS: u8 =
    status::ACKNOWLEDGE | status::DRIVER | status::DRIVER_OK | status::FEATURES_OK | status::FAILED;

/// What a register write asks of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Stop the device and reset it.
    Reset,
    /// Start the device.
    Start,
}

/// The registers, with the vectors where interrupting threads can see them.
pub struct CommonConfig {
    offered: u64,
    max_sizes: Vec<u16>,
    vectors: u16,
    state: CommonState,
    /// Vector of configuration changes.
    pub config_vector: Arc<AtomicU16>,
    /// Counts changes of the device configuration.
    pub generation: Arc<AtomicU8>,
    /// Vector of each queue.
    pub queue_vectors: Vec<Arc<AtomicU16>>,
}

impl CommonConfig {
    /// Registers of a device that offers `offered` and queues of at most `max_sizes`, with
    /// `vectors` MSI-X vectors.
    pub fn new(offered: u64, max_sizes: &[u16], vectors: u16) -> Self {
        let vector = || Arc::new(AtomicU16::new(NO_VECTOR));
        Self {
            offered,
            max_sizes: max_sizes.to_vec(),
            vectors,
            state: CommonState::power_on(max_sizes),
            config_vector: vector(),
            generation: Arc::default(),
            queue_vectors: max_sizes.iter().map(|_| vector()).collect(),
        }
    }

    /// Back to power-on. The generation goes on counting.
    pub fn reset(&mut self) {
        self.state = CommonState::power_on(&self.max_sizes);
        self.publish_vectors();
    }

    /// Device status.
    pub fn status(&self) -> u8 {
        self.state.status
    }

    /// The device cannot go on: only a reset helps.
    pub fn needs_reset(&mut self) {
        self.state.status |= status::NEEDS_RESET;
    }

    /// The driver may expect the device to run.
    pub fn driver_ok(&self) -> bool {
        self.state.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    /// Features that the driver accepted.
    pub fn features(&self) -> u64 {
        self.state.features
    }

    /// Number of queues.
    pub fn queues(&self) -> usize {
        self.max_sizes.len()
    }

    /// The guest reads registers; any width, any offset.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let image = self.image();
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = usize::try_from(at)
                .ok()
                .and_then(|at| image.get(at).copied())
                .unwrap_or(0);
        }
    }

    fn image(&self) -> [u8; COMMON_BYTES as usize] {
        let state = &self.state;
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let mut image = [0; COMMON_BYTES as usize];
        let mut put = |at: usize, value: &[u8]| image[at..at + value.len()].copy_from_slice(value);
        put(0, &state.device_select.to_le_bytes());
        put(4, &half(self.offered, state.device_select).to_le_bytes());
        put(8, &state.driver_select.to_le_bytes());
        put(12, &half(state.features, state.driver_select).to_le_bytes());
        put(16, &state.config_vector.to_le_bytes());
        put(18, &(self.queues() as u16).to_le_bytes());
        put(20, &[state.status, self.generation.load(Ordering::Acquire)]);
        put(22, &state.queue_select.to_le_bytes());
        if let Some(queue) = state.queues.get(usize::from(state.queue_select)) {
            put(24, &queue.size.to_le_bytes());
            put(26, &queue.vector.to_le_bytes());
            put(28, &u16::from(queue.enabled).to_le_bytes());
            put(30, &state.queue_select.to_le_bytes());
            put(32, &queue.descriptors.to_le_bytes());
            put(40, &queue.driver.to_le_bytes());
            put(48, &queue.device.to_le_bytes());
        } else {
            put(26, &NO_VECTOR.to_le_bytes());
        }
        image
    }

    /// The guest writes a register. Accesses that are not exactly one register (or one half
    /// of a 64-bit register) are dropped.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let Some(value) = little_endian(data) else {
            return Effect::None;
        };
        match (offset, data.len()) {
            (0, 4) => self.state.device_select = value as u32,
            (8, 4) => self.state.driver_select = value as u32,
            (12, 4) => self.write_features(value as u32),
            (16, 2) => {
                self.state.config_vector = self.vector(value);
                self.publish_vectors();
            }
            (20, 1) => return self.write_status(value as u8),
            (22, 2) => self.state.queue_select = value as u16,
            (24..56, width) => self.write_queue(offset, width, value),
            _ => {}
        }
        Effect::None
    }

    fn vector(&self, value: u64) -> u16 {
        u16::try_from(value)
            .ok()
            .filter(|vector| *vector < self.vectors)
            .unwrap_or(NO_VECTOR)
    }

    fn publish_vectors(&self) {
        self.config_vector
            .store(self.state.config_vector, Ordering::Release);
        for (shared, queue) in self.queue_vectors.iter().zip(&self.state.queues) {
            shared.store(queue.vector, Ordering::Release);
        }
    }

    fn write_features(&mut self, value: u32) {
        if self.state.status & status::FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        let features = &mut self.state.features;
        match self.state.driver_select {
            0 => *features = (*features & !0xffff_ffff) | value,
            1 => *features = (*features & 0xffff_ffff) | value << 32,
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let before = self.state.status;
        let mut now = before | (value & GUEST_STATUS);
        let agreed =
            self.state.features & !self.offered == 0 && self.state.features & VERSION_1 != 0;
        if before & status::FEATURES_OK == 0 && !agreed {
            now &= !status::FEATURES_OK;
        }
        if now & status::FEATURES_OK == 0 {
            now &= !status::DRIVER_OK;
        }
        self.state.status = now;
        let begins = (now & !before) & status::DRIVER_OK != 0;
        if begins && now & status::NEEDS_RESET == 0 {
            Effect::Start
        } else {
            Effect::None
        }
    }

    fn write_queue(&mut self, offset: u64, width: usize, value: u64) {
        let index = usize::from(self.state.queue_select);
        let vector = self.vector(value);
        let running = self.state.status & status::DRIVER_OK != 0;
        let (Some(queue), Some(max)) =
            (self.state.queues.get_mut(index), self.max_sizes.get(index))
        else {
            return;
        };
        if (offset, width) == (26, 2) {
            queue.vector = vector;
            self.publish_vectors();
            return;
        }
        // Without VIRTIO_F_RING_RESET a queue is fixed once it is enabled (§4.1.4.3.2).
        if queue.enabled || running {
            return;
        }
        let low = |old: u64| (old & !0xffff_ffff) | value;
        let high = |old: u64| (old & 0xffff_ffff) | value << 32;
        match (offset, width) {
            (24, 2) => {
                let size = value as u16;
                if size.is_power_of_two() && size <= *max {
                    queue.size = size;
                }
            }
            (28, 2) => queue.enabled = value == 1,
            (32, 4) => queue.descriptors = low(queue.descriptors),
            (36, 4) => queue.descriptors = high(queue.descriptors),
            (32, 8) => queue.descriptors = value,
            (40, 4) => queue.driver = low(queue.driver),
            (44, 4) => queue.driver = high(queue.driver),
            (40, 8) => queue.driver = value,
            (48, 4) => queue.device = low(queue.device),
            (52, 4) => queue.device = high(queue.device),
            (48, 8) => queue.device = value,
            _ => {}
        }
    }

    /// The enabled queues, each checked to lie inside `memory`; `None` when one does not.
    pub fn build_queues(&self, memory: &GuestMemory) -> Option<Vec<(u16, Queue)>> {
        const EVENT_IDX: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
        let mut queues = Vec::new();
        for (index, (registers, max_size)) in
            self.state.queues.iter().zip(&self.max_sizes).enumerate()
        {
            if !registers.enabled {
                continue;
            }
            let queue = Queue::try_from(QueueState {
                max_size: *max_size,
                next_avail: registers.next_avail,
                next_used: registers.next_used,
                event_idx_enabled: self.state.features & EVENT_IDX != 0,
                size: registers.size,
                ready: true,
                desc_table: registers.descriptors,
                avail_ring: registers.driver,
                used_ring: registers.device,
            })
            .ok()?;
            if !queue.is_valid(memory) {
                return None;
            }
            queues.push((index as u16, queue));
        }
        Some(queues)
    }

    /// Note how far a stopped device got in queue `index`.
    pub fn queue_stopped(&mut self, index: u16, queue: &Queue) {
        if let Some(registers) = self.state.queues.get_mut(usize::from(index)) {
            registers.next_avail = queue.next_avail();
            registers.next_used = queue.next_used();
        }
    }

    /// Copy the registers.
    pub fn save(&self) -> CommonState {
        let generation = self.generation.load(Ordering::Acquire);
        CommonState {
            generation,
            ..self.state.clone()
        }
    }

    /// Pour in registers of the same device; `false` (and nothing changed) when they cannot
    /// be of this device.
    pub fn restore(&mut self, state: &CommonState) -> bool {
        let sizes_fit = state.queues.len() == self.max_sizes.len()
            && state
                .queues
                .iter()
                .zip(&self.max_sizes)
                .all(|(queue, max)| {
                    queue.size.is_power_of_two()
                        && queue.size <= *max
                        && self.is_vector(queue.vector)
                });
        // Until they are agreed upon, a driver may have written any features.
        let agreed = state.status & status::FEATURES_OK != 0;
        let features_fit = !agreed || state.features & !self.offered == 0;
        if !sizes_fit || !features_fit || !self.is_vector(state.config_vector) {
            return false;
        }
        self.state = state.clone();
        self.generation.store(state.generation, Ordering::Release);
        self.publish_vectors();
        true
    }

    fn is_vector(&self, vector: u16) -> bool {
        vector == NO_VECTOR || vector < self.vectors
    }
}

fn little_endian(data: &[u8]) -> Option<u64> {
    let mut value = [0; 8];
    value.get_mut(..data.len())?.copy_from_slice(data);
    Some(u64::from_le_bytes(value))
}
