//! The values of the common configuration registers, as they are saved and restored.

use serde::{Deserialize, Serialize};

/// `VIRTIO_MSI_NO_VECTOR`.
pub const NO_VECTOR: u16 = 0xffff;

/// One queue as the driver configured it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegisters {
    /// Size in descriptors.
    pub size: u16,
    /// MSI-X vector.
    pub vector: u16,
    /// The driver enabled the queue.
    pub enabled: bool,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub driver: u64,
    /// Used ring.
    pub device: u64,
    /// Next entry of the available ring that the device takes.
    pub next_avail: u16,
    /// Next entry of the used ring that the device fills.
    pub next_used: u16,
}

/// All registers, for save and restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommonState {
    /// Device status.
    pub status: u8,
    /// `device_feature_select`.
    pub device_select: u32,
    /// `driver_feature_select`.
    pub driver_select: u32,
    /// Features that the driver accepted.
    pub features: u64,
    /// Vector of configuration changes.
    pub config_vector: u16,
    /// `config_generation`.
    pub generation: u8,
    /// `queue_select`.
    pub queue_select: u16,
    /// All queues.
    pub queues: Vec<QueueRegisters>,
}

impl CommonState {
    /// The registers at power-on, of queues of these largest sizes.
    pub fn power_on(max_sizes: &[u16]) -> Self {
        let queue = |size: &u16| QueueRegisters {
            size: *size,
            vector: NO_VECTOR,
            enabled: false,
            descriptors: 0,
            driver: 0,
            device: 0,
            next_avail: 0,
            next_used: 0,
        };
        Self {
            status: 0,
            device_select: 0,
            driver_select: 0,
            features: 0,
            config_vector: NO_VECTOR,
            generation: 0,
            queue_select: 0,
            queues: max_sizes.iter().map(queue).collect(),
        }
    }
}
