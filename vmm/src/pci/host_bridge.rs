//! The host bridge at 00:00.0: identity only.

use std::io;

use super::config::{ConfigSpace, Identity};
use super::function::{FunctionState, PciFunction};
use crate::codec;

const VENDOR_REDHAT: u16 = 0x1b36;
const DEVICE_PCIE_HOST: u16 = 0x0008;
const CLASS_HOST_BRIDGE: [u8; 3] = [0x06, 0x00, 0x00];
const STATE_VERSION: u16 = 1;

/// A generic PCIe host bridge without BARs.
pub struct HostBridge(ConfigSpace);

impl HostBridge {
    /// The bridge as it is at power-on.
    pub fn new() -> Self {
        Self(ConfigSpace::new(Identity {
            vendor: VENDOR_REDHAT,
            device: DEVICE_PCIE_HOST,
            subsystem: 0,
            revision: 0,
            class: CLASS_HOST_BRIDGE,
        }))
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciFunction for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }

    fn read_bar(&mut self, _bar: usize, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write_bar(&mut self, _bar: usize, _offset: u64, _data: &[u8]) {}

    fn save(&self) -> FunctionState {
        FunctionState {
            version: STATE_VERSION,
            config: self.0.save(),
            bytes: Vec::new(),
        }
    }

    fn restore(&mut self, state: &FunctionState) -> io::Result<()> {
        codec::check_version("host bridge", state.version, STATE_VERSION)?;
        self.0.restore(&state.config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_of_another_layout_is_refused() {
        let mut bridge = HostBridge::new();
        let state = bridge.save();
        bridge.restore(&state).unwrap();
        let later = FunctionState {
            version: STATE_VERSION + 1,
            ..state
        };
        let why = bridge.restore(&later).unwrap_err().to_string();
        assert!(why.contains("host bridge has version 2"), "{why}");
    }
}
