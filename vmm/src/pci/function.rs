//! One function on the bus: what the root asks of it.

use std::io;

use serde::{Deserialize, Serialize};

use super::config::ConfigSpace;

/// State of one function as it travels to another process. Versioned by the function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionState {
    /// Layout of `bytes`; a function refuses versions that it does not know.
    pub version: u16,
    /// The guest-visible configuration space.
    pub config: Vec<u8>,
    /// Everything else, encoded by the function.
    pub bytes: Vec<u8>,
}

/// A PCI function. All offsets, widths and values are chosen by the guest.
pub trait PciFunction: Send {
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;

    /// Its configuration space, for the root to place BARs.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// The guest reads configuration space.
    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// The guest writes configuration space.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.config_mut().write(offset, data);
    }

    /// The guest reads inside BAR `bar`.
    fn read_bar(&mut self, bar: usize, offset: u64, data: &mut [u8]);

    /// The guest writes inside BAR `bar`.
    fn write_bar(&mut self, bar: usize, offset: u64, data: &[u8]);

    /// BARs may have moved, or decoding was switched: bring doorbells along.
    fn bars_changed(&mut self) {}

    /// [`PciFunction::pause`] will be called soon: let everything that takes time begin.
    fn ask_to_pause(&self) {}

    /// Stop everything that runs by itself; afterwards neither guest memory nor any
    /// backend is touched. Idempotent.
    fn pause(&mut self) {}

    /// Go on after [`PciFunction::pause`] or [`PciFunction::restore`].
    fn resume(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Back to power-on; the root places the BARs. The function is not paused afterwards.
    fn reset(&mut self) {}

    /// Copy the state; called while paused. As a draft also while running: queues may be anywhere
    /// then.
    fn save(&self) -> FunctionState;

    /// Pour in what [`PciFunction::save`] copied; called while paused, on a function that
    /// was built from the same spec. Nothing runs until [`PciFunction::resume`].
    fn restore(&mut self, state: &FunctionState) -> io::Result<()>;

    /// The guest has just arrived on this host; see `VirtioDevice::announce`.
    fn announce(&mut self) -> io::Result<()> {
        Ok(())
    }
}
