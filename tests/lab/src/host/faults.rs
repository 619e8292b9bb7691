//! What can befall a host besides losing its power: it is frozen, its clock stops, its cables
//! are cut.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Host, lock};
use crate::error::During;
use crate::network::CableState;
use crate::{LabError, Result};

/// Which of a host's two cables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cable {
    /// `br0`: agents, migrations and guests.
    Management,
    /// `eth1`: the way to the storage host.
    Storage,
}

/// Which frames a cut loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// What the host sends.
    FromHost,
    /// What is sent to it.
    ToHost,
    /// All.
    Both,
}

impl Host {
    /// Stops every instruction of it at once; its clock jumps when it is thawed.
    pub fn freeze(&self) -> Result<()> {
        self.signal(libc::SIGSTOP)
    }

    /// Ends [`Host::freeze`].
    pub fn thaw(&self) -> Result<()> {
        self.signal(libc::SIGCONT)
    }

    fn signal(&self, signal: i32) -> Result<()> {
        let power = lock(&self.power);
        let power = power
            .as_ref()
            .ok_or_else(|| LabError::Off(self.name.clone()))?;
        // SAFETY: kill takes no pointers; the child is ours and has not been waited for.
        match unsafe { libc::kill(power.child.id().cast_signed(), signal) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()).during("send a signal to", &self.name),
        }
    }

    /// Freezes it together with its clock, as a hypervisor's pause does: afterwards it believes
    /// that no time has passed. The hardest case for anything that keeps deadlines.
    pub fn stop_clock(&self) -> Result<()> {
        self.qmp("stop")
    }

    /// Ends [`Host::stop_clock`].
    pub fn start_clock(&self) -> Result<()> {
        self.qmp("cont")
    }

    fn qmp(&self, command: &str) -> Result<()> {
        let mut power = lock(&self.power);
        let power = power
            .as_mut()
            .ok_or_else(|| LabError::Off(self.name.clone()))?;
        power.qmp.execute(command, &json!({})).map(drop)
    }

    /// Loses all frames of one cable in a direction; the carrier stays up.
    pub fn cut(&self, cable: Cable, direction: Direction) {
        self.set_cut(cable, direction, true);
    }

    /// Ends [`Host::cut`].
    pub fn heal(&self, cable: Cable, direction: Direction) {
        self.set_cut(cable, direction, false);
    }

    fn set_cut(&self, cable: Cable, direction: Direction, cut: bool) {
        let state = &self.cables[cable as usize];
        if direction != Direction::ToHost {
            state.from_host_cut.store(cut, Ordering::Relaxed);
        }
        if direction != Direction::FromHost {
            state.to_host_cut.store(cut, Ordering::Relaxed);
        }
    }

    /// One cable's cuts and counters.
    pub fn cable(&self, cable: Cable) -> &CableState {
        &self.cables[cable as usize]
    }
}
