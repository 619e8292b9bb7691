//! What the machine is told, and what it tells the shell.

use super::Grounds;
use crate::record::{Holder, LeaseRecord};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Time passed, or the host's hold changed.
    Tick,
    /// Claim the epoch after `last`.
    Claim {
        /// The last epoch there is.
        last: Option<LeaseRecord>,
        /// Why we may.
        grounds: Grounds,
        /// Whether the target can fence: asks for it when the holder did not release.
        can_fence: bool,
    },
    /// The last epoch was found to name us: by our agent's claim, or handed over to us.
    Adopt {
        /// It.
        last: LeaseRecord,
        /// A process of this boot that acted under it died without ending it: its writes may
        /// still be under way, so that a new epoch with fencing is owed.
        died: bool,
    },
    /// Give the lease to `to`. The guest must be paused and its writes complete.
    HandOver {
        /// The next holder, as it said itself when it was ready.
        to: Holder,
        /// Which hand-over this is, of all that were ever tried: the record carries it, so
        /// that a target that was left behind takes no later one for its own.
        nonce: [u8; 16],
    },
    /// Give the lease up. The guest must be stopped and its writes complete.
    Release,
    /// The answer to [`Action::Create`] or [`Action::Settle`].
    Created {
        /// The record the answer is about.
        record: LeaseRecord,
        /// What became of it.
        outcome: Outcome,
    },
    /// The answer to [`Action::Look`]: the last epoch there is.
    Looked {
        /// It, if there is any.
        last: Option<LeaseRecord>,
    },
    /// The answer to [`Action::Fence`].
    Fenced {
        /// The epoch that was asked for.
        epoch: u64,
        /// Whether every disk now lies in a file of that epoch.
        done: bool,
    },
}

/// What became of the exclusive creation of an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is there, it is ours, and it is the last.
    Won,
    /// Another record has this epoch, or there is a later one.
    Lost {
        /// The last epoch there is.
        last: LeaseRecord,
    },
    /// It is not there and can no longer appear.
    Absent,
    /// No answer: it may be there, or may appear yet.
    Unknown,
}

/// What the shell shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Create this epoch exclusively, then look whether it is the last.
    Create(LeaseRecord),
    /// Find out what became of the creation of this epoch; if it is not there, make sure that
    /// it cannot appear any more.
    Settle(LeaseRecord),
    /// Read the last epoch.
    Look,
    /// Bring every disk into a file of this epoch and remove the older ones.
    Fence {
        /// The epoch.
        epoch: u64,
    },
    /// The guest may run.
    Run,
    /// The guest must stand still.
    Pause,
    /// Older epochs than this are history.
    Forget {
        /// The epoch to keep.
        before: u64,
    },
    /// The claim came to nothing: nothing changed for us.
    Refused(Refusal),
    /// It is over: the guest must never run here again under this lease.
    End(Ending),
}

/// Why a wish came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Our own heartbeat is not acknowledged: we could not keep what we get.
    #[error("this host's own heartbeat is not reaching the datastore")]
    NotBeating,
    /// Another was faster.
    #[error("epoch {} was created by another host", last.epoch)]
    Outrun {
        /// The epoch that counts.
        last: LeaseRecord,
    },
    /// The new epoch could not be written, and it is certain that it is not there.
    #[error("the next epoch could not be written")]
    NotWritten,
    /// The lease is not in a state in which this can be asked.
    #[error("the lease is not held at the moment")]
    NotHolding,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// We gave it to another host.
    HandedOver(LeaseRecord),
    /// We gave it up.
    Released(LeaseRecord),
    /// Another has it.
    Lost(LeaseRecord),
}
