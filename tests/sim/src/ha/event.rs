//! What can happen next in the world.

use std::collections::BTreeMap;
use std::rc::Rc;

use cluster_core::messages::Message;
use cluster_core::settings::Inventory;
use storage_core::lease;
use storage_core::observer::Sight;
use storage_core::record::{HeartbeatRecord, LeaseRecord};

use super::faults::Fault;

pub const MS: u64 = 1000;
pub const SECOND: u64 = 1_000_000;

/// What happens. Whatever happens inside a host names the boot it belongs to.
pub enum Ev {
    /// The heartbeat is due.
    BeatTurn {
        host: usize,
        life: u64,
    },
    BeatLands {
        host: usize,
        record: HeartbeatRecord,
    },
    BeatAcked {
        host: usize,
        life: u64,
        sent_us: u64,
    },
    /// Others' heartbeats and the leader lease are to be read.
    ReadTurn {
        host: usize,
        agent: u64,
    },
    Read {
        host: usize,
        agent: u64,
        issued_us: u64,
        read: Option<Reading>,
    },
    Tick {
        host: usize,
        life: u64,
    },
    Deliver {
        to: usize,
        from: usize,
        message: Message,
    },
    News {
        host: usize,
        agent: u64,
        inventory: Rc<Inventory>,
    },
    LeaseRead {
        host: usize,
        agent: u64,
        guest: String,
        last: Option<LeaseRecord>,
    },
    /// For one of the lease machines of the host.
    Lease {
        host: usize,
        life: u64,
        subject: String,
        serial: u64,
        input: Input,
    },
    Fault(Fault),
}

/// What a lease machine's process learns.
pub enum Input {
    /// The lease as it is, before it is claimed.
    Seen(Option<LeaseRecord>),
    /// The datastore did not answer.
    NotRead,
    Event(lease::Event),
    /// The machine is built, or could not be.
    Built(bool),
    /// The guest has shut down.
    Down,
}

/// What one reading of the datastore gave.
pub struct Reading {
    pub beats: BTreeMap<usize, Rc<Sight>>,
    pub lead: Option<LeaseRecord>,
}

impl Ev {
    /// The host that acts, and that has to wait while it is frozen.
    pub fn acting(&self) -> Option<usize> {
        match self {
            Self::BeatTurn { host, .. }
            | Self::BeatAcked { host, .. }
            | Self::ReadTurn { host, .. }
            | Self::Read { host, .. }
            | Self::Tick { host, .. }
            | Self::News { host, .. }
            | Self::LeaseRead { host, .. }
            | Self::Lease { host, .. } => Some(*host),
            Self::Deliver { to, .. } => Some(*to),
            Self::BeatLands { .. } | Self::Fault(_) => None,
        }
    }
}
