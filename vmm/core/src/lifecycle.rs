//! The states of a guest's VMM.
//!
//! ```text
//!   Built ──────► Running ◄────► Paused
//!                  │  ▲            │
//!                  ▼  │ cancelled  │ committed
//!               Migrating ─────────┴──────► Moved
//!                  (all) ──────────────────► Ended
//! ```

use serde::{Deserialize, Serialize};

/// What the VMM does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The machine exists; its processors have not run.
    Built,
    /// Its processors run.
    Running,
    /// Its processors stand still; nothing touches its memory or disks.
    Paused,
    /// Its processors run and its memory is on its way to another host.
    Migrating,
    /// It runs on another host; this process only says so and ends.
    Moved,
}

/// How a VMM ended; the exit code of its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Ending {
    /// The guest switched itself off, or was switched off by request.
    PoweredOff = 0,
    /// Something on this side failed; the message says what.
    Failed = 1,
    /// The guest's kernel reported a panic.
    Panicked = 10,
    /// The guest's processor gave up (triple fault).
    Crashed = 11,
    /// The right to run the guest went to another host; nothing was written after that.
    LeaseLost = 12,
    /// The guest has moved to another host.
    Moved = 13,
}

impl Ending {
    /// The exit code.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// What an exit code means; `None` for one that no VMM returns.
    pub fn from_code(code: i32) -> Option<Self> {
        [
            Self::PoweredOff,
            Self::Failed,
            Self::Panicked,
            Self::Crashed,
            Self::LeaseLost,
            Self::Moved,
        ]
        .into_iter()
        .find(|ending| i32::from(ending.code()) == code)
    }
}
