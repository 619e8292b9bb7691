//! What can happen next in the world.

use storage_core::lease::Outcome;
use storage_core::record::{HeartbeatRecord, LeaseRecord};

use super::host::Who;
use super::plan::Fault;

/// Who asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    pub(super) host: usize,
    pub(super) who: Who,
    pub(super) id: u64,
}

/// A request as it takes effect on the storage.
#[derive(Debug, Clone)]
pub(super) enum Request {
    Beat {
        record: HeartbeatRecord,
        sent_us: u64,
    },
    Read {
        of: usize,
        issued_us: u64,
    },
    Link(LeaseRecord),
    Confirm(LeaseRecord),
    Withdraw(LeaseRecord),
    Check(LeaseRecord),
    Look,
    Clone(u64),
    Unlink(u64),
    Open(u64),
    Forget(u64),
    Write {
        inode: u64,
        line: u64,
    },
}

/// What comes back.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Beat {
        sent_us: u64,
    },
    Read {
        of: usize,
        issued_us: u64,
        record: Option<HeartbeatRecord>,
    },
    Created(LeaseRecord, Outcome),
    Looked(Option<LeaseRecord>),
    Fenced(u64, bool),
    Opened(Option<u64>),
    Written,
    Forgotten,
    /// No answer within reason, or an error.
    Failed(Request),
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Tick(Origin),
    /// The guest wants to write.
    Write(Origin),
    /// A write that the gate let through goes out.
    Issue(Origin, Request),
    Land {
        origin: Origin,
        request: Request,
        answered: bool,
    },
    Answer(Origin, Answer),
    Spawn {
        host: usize,
        boot: u64,
        who: Who,
    },
    Fault(Fault),
    Boot(usize),
    ClockThaw {
        host: usize,
        own_us: u64,
    },
}

impl Step {
    /// Where it takes place; none for what nobody in particular does.
    pub(super) fn place(&self) -> Option<(usize, Who)> {
        match self {
            Self::Tick(origin)
            | Self::Write(origin)
            | Self::Issue(origin, _)
            | Self::Land { origin, .. }
            | Self::Answer(origin, _) => Some((origin.host, origin.who)),
            Self::Spawn { host, who, .. } => Some((*host, *who)),
            Self::Fault(_) | Self::Boot(_) | Self::ClockThaw { .. } => None,
        }
    }
}
