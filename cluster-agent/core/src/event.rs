//! What the brain is told and what it wants done: its whole contact with the world.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use storage_core::hold::Hold;
use storage_core::record::HeartbeatRecord;

use crate::messages::{
    HostNote, LeaseSeen, LocalGuest, Message, MoveAnswer, MoveOutcome, StartOutcome,
};
use crate::model::{Desired, GuestId, HostId};
use crate::observation::{Counted, HostCounted};
use crate::settings::Inventory;

/// What the brain is told. Deliver each as it happens, with the boottime clock read when it
/// was known to be true (for a read: when the read was *sent*).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Time passed. Deliver at least every 50 ms.
    Tick,
    /// What the datastore says about the cluster: once at the start, before anything else
    /// is decided, and whenever it changed.
    Inventory(Box<Inventory>),
    /// What is known of another host's datastore heartbeat (every interval, for every host):
    /// the sighting that the datastore's watcher keeps.
    Sighted {
        /// Whose.
        host: HostId,
        /// The record read last; `None`: there is none that can be read.
        record: Option<HeartbeatRecord>,
        /// For how long it has stood still, as the lease's observer counts.
        silent_us: u64,
    },
    /// The hold of this host on what it has (every interval, and when it changed).
    Hold(Hold),
    /// The leader lease was read (every interval, on every host; and at once after
    /// [`Action::ContendForLeader`], won or lost).
    LeaderLease(LeaseSeen),
    /// A guest's lease was read: answers to [`Action::ReadLeases`].
    GuestLease {
        /// Whose.
        guest: GuestId,
        /// What it said.
        seen: LeaseSeen,
    },
    /// What the operator wants of a guest was read, by itself and ahead of the inventory: with a
    /// lease that is free, for whoever released it may have written down that the guest is off.
    Wanted {
        /// Which.
        guest: GuestId,
        /// What.
        desired: Desired,
        /// Revision of the spec that says so.
        revision: u64,
    },
    /// A message of an authenticated peer arrived.
    Received {
        /// The sender, as its certificate says.
        from: HostId,
        /// What it said.
        message: Message,
    },
    /// A guest on this host changed (also: found running after an agent restart).
    /// `None`: it is no longer here and its lease is released or lost.
    Local {
        /// Which.
        guest: GuestId,
        /// What it does.
        now: Option<LocalGuest>,
    },
    /// What the VMM of a guest of this host has counted (every few seconds).
    Counted {
        /// Which guest.
        guest: GuestId,
        /// What.
        counted: Counted,
    },
    /// What this host's kernel has counted (every few seconds).
    HostCounted(HostCounted),
    /// How an [`Action::Start`] went.
    StartDone {
        /// Which guest.
        guest: GuestId,
        /// How it went.
        outcome: StartOutcome,
    },
    /// How an [`Action::Migrate`] went.
    Migrated {
        /// Which guest.
        guest: GuestId,
        /// How it went.
        outcome: MoveOutcome,
    },
}

/// What the brain wants done. Each is carried out in order; none waits for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send to a peer; losing it is allowed.
    Send {
        /// To whom.
        to: HostId,
        /// What.
        message: Message,
    },
    /// Add this to our datastore heartbeat from now on, as its flags.
    Publish(HostNote),
    /// Try to take the leader lease over from this epoch, then deliver
    /// [`Event::LeaderLease`]. The lease itself decides whether that is allowed.
    ContendForLeader {
        /// The epoch as last read.
        from_epoch: u64,
        /// Why now and why us.
        because: String,
    },
    /// Release the leader lease; another host serves the cluster better.
    ReleaseLeader {
        /// Why.
        because: String,
    },
    /// Read the leases of these guests and deliver each as [`Event::GuestLease`], a free one after
    /// [`Event::Wanted`]. What could not be read is not delivered and will be asked for again.
    ReadLeases {
        /// Which.
        guests: Vec<GuestId>,
    },
    /// Take this guest's lease over from this epoch (waiting for its holder's lapse to be
    /// certain where need be), start it here, then deliver [`Event::StartDone`]. Deliver
    /// [`Event::Local`] as its state changes.
    Start {
        /// Which guest.
        guest: GuestId,
        /// The lease epoch to take over from.
        from_epoch: u64,
        /// Why.
        because: String,
    },
    /// Migrate this guest of ours to another host, then deliver [`Event::Migrated`].
    Migrate {
        /// Which guest.
        guest: GuestId,
        /// Where to.
        to: HostId,
        /// What the order is known by.
        number: u64,
        /// Why.
        because: String,
    },
    /// A migration that was ordered does not begin; whoever waits for it is to be told.
    NotMigrated(MoveAnswer),
    /// Release the lease of this guest, which names this host, unless it runs here after all.
    Release {
        /// Which guest.
        guest: GuestId,
        /// Why.
        because: String,
    },
    /// This host was told to leave the cluster and seems empty: it takes itself off the list
    /// and its agent ends, if there is no guest that has only not been found again yet. Asked
    /// for again and again.
    Leave,
    /// Stop this guest here, release its lease and do not restart it here.
    Stop {
        /// Which guest.
        guest: GuestId,
        /// How.
        how: StopHow,
        /// Why.
        because: String,
    },
    /// Add to the cluster's event history.
    Record(Record),
}

/// How a guest is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopHow {
    /// By its power button, switched off after the usual grace.
    ShutDown,
    /// At once.
    PowerOff,
}

/// An entry of the event history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// How much it matters.
    pub level: Level,
    /// The host or guest it is about, or `cluster`.
    pub about: String,
    /// What happened and why, in words and numbers.
    pub text: String,
}

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For the record.
    Info,
    /// Something is not as it should be, and is being dealt with.
    Warning,
    /// Somebody has to act.
    Error,
}
