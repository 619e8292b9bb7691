//! Why a guest does not do what was asked.

use std::io;

use crate::machine::MachineError;

/// Why the guest does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// It has ended or moved.
    #[error("the guest is not here any more")]
    Gone,
    /// Only a running guest can do it.
    #[error("cannot {0}: the guest does not run; resume it first")]
    NotRunning(&'static str),
    /// Only a paused guest can do it.
    #[error("cannot {0}: the guest runs; pause it first")]
    NotPaused(&'static str),
    /// Only a machine that has not run can do it.
    #[error("cannot {0}: the machine has run already")]
    NotBuilt(&'static str),
    /// It is between two hosts.
    #[error("cannot {0}: the guest is switching over to another host; ask again, there or here")]
    Leaving(&'static str),
    /// It ends or reboots just now.
    #[error("the guest reboots or ends just now; try again")]
    Ending,
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The operating system.
    #[error("cannot {act}: {source}")]
    Io {
        /// What was to be done.
        act: &'static str,
        /// Why not.
        source: io::Error,
    },
}
