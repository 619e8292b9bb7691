//! What agents tell each other. The shell carries these; only the brain reads them.

use alloc::collections::BTreeMap;
use alloc::string::String;

use serde::{Deserialize, Serialize};
use storage_core::record::LeaseRecord;

use crate::migration_cost::Link;
use crate::model::{GuestId, HostId, Resources};
use crate::observation::{Counted, HostCounted};

pub use storage_core::record::{Holder, Incarnation};

/// Between two agents. Versioned and framed by the shell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// "I am here." Sent every `beat_every_ms`.
    Beat(Beat),
    /// Member to leader: every guest here. Sent when something changed, and now and then.
    Report(Report),
    /// Leader to member: start this guest.
    Start(StartOrder),
    /// Member to leader: how the start went.
    Started(StartAnswer),
    /// Leader to member: migrate this guest of yours.
    Move(MoveOrder),
    /// Member to leader: how the migration went.
    Moved(MoveAnswer),
    /// Leader to member: let go of a guest that you hold and do not run.
    Release(ReleaseOrder),
}

/// A network heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// The sender's incarnation.
    pub incarnation: Incarnation,
    /// Counts up by one with each beat: what is missing was lost.
    pub sequence: u64,
    /// Highest epoch of the leader lease the sender knows, so that news travels faster
    /// than the datastore is read.
    pub leader_epoch: u64,
}

/// Every guest of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The sender's incarnation.
    pub incarnation: Incarnation,
    /// Every guest it holds, starts or receives.
    pub guests: BTreeMap<GuestId, LocalGuest>,
    /// What their VMMs have counted.
    #[serde(default)]
    pub counted: BTreeMap<GuestId, Counted>,
    /// What the host's kernel has counted.
    #[serde(default)]
    pub host_counted: Option<HostCounted>,
    /// What the host needs for itself, once it knows.
    #[serde(default)]
    pub own_needs: Option<Resources>,
    /// What migrations from here have shown.
    #[serde(default)]
    pub link: Option<Link>,
}

/// What a host adds to its datastore heartbeat (as its flags) for those who cannot hear it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostNote {
    /// How many peers it hears.
    pub hears: u16,
    /// How many peers it ought to hear.
    pub of: u16,
}

impl HostNote {
    /// As the flags of the heartbeat record.
    pub fn to_flags(self) -> u32 {
        u32::from(self.hears) << 16 | u32::from(self.of)
    }

    /// From the flags of the heartbeat record.
    pub fn from_flags(flags: u32) -> Self {
        Self {
            hears: (flags >> 16) as u16,
            of: flags as u16,
        }
    }

    /// Does it hear at least half of those it ought to?
    pub fn well_connected(self) -> bool {
        u32::from(self.hears) * 2 >= u32::from(self.of)
    }
}

/// A guest on the host that reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalGuest {
    /// Epoch of the lease under which it is held here; 0 while it has none (arriving).
    pub epoch: u64,
    /// What it does.
    pub state: GuestState,
    /// For how long it has run.
    pub running_ms: u64,
}

/// What a guest does on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestState {
    /// Its lease is being taken or its virtual machine built.
    Starting,
    /// It runs.
    Running {
        /// The software inside has said that it lives.
        beating: bool,
    },
    /// It stands still: paused by the operator or because storage is gone.
    Paused,
    /// It is coming in by live migration; the source still owns it.
    Arriving,
}

/// Start a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartOrder {
    /// Which guest.
    pub guest: GuestId,
    /// Epoch of the leader lease of whoever orders; older leaders are not obeyed.
    pub leader_epoch: u64,
    /// The lease epoch the order is based on: the guest is to be taken over from it.
    pub from_epoch: u64,
    /// Revision of the spec that says that it shall run; an older one is not to stop it.
    #[serde(default)]
    pub spec_revision: u64,
    /// Why, for the history.
    pub because: String,
}

/// How an ordered start went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartAnswer {
    /// Which guest.
    pub guest: GuestId,
    /// The `from_epoch` of the order this answers.
    pub from_epoch: u64,
    /// How it went.
    pub outcome: StartOutcome,
}

/// How a start went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartOutcome {
    /// The lease is ours under this epoch and the guest runs.
    Running {
        /// The new lease epoch.
        epoch: u64,
    },
    /// Somebody else holds the lease now; nothing was started here.
    LostRace {
        /// The lease as it was read then.
        seen: LeaseSeen,
    },
    /// It did not start here; the lease was released.
    Failed {
        /// What failed, with its cause.
        why: String,
    },
    /// This host did not try.
    Refused {
        /// Why not.
        why: String,
    },
}

/// Migrate a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveOrder {
    /// Which guest.
    pub guest: GuestId,
    /// Where to.
    pub to: HostId,
    /// What the order is known by to whoever waits for it.
    pub number: u64,
    /// Epoch of the leader lease of whoever orders; older leaders are not obeyed.
    pub leader_epoch: u64,
    /// Why, for the history.
    pub because: String,
}

/// Let go of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseOrder {
    /// Which guest.
    pub guest: GuestId,
    /// Epoch of the leader lease of whoever orders; older leaders are not obeyed.
    pub leader_epoch: u64,
    /// Why, for the history.
    pub because: String,
}

/// How an ordered migration went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveAnswer {
    /// Which guest.
    pub guest: GuestId,
    /// Where it was to go.
    pub to: HostId,
    /// What the order is known by.
    pub number: u64,
    /// How it went.
    pub outcome: MoveOutcome,
}

/// How a migration went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MoveOutcome {
    /// The guest runs there.
    Moved {
        /// From the order to the guest running there.
        total_ms: u64,
        /// For how long the guest stood still, as the source measured it.
        blackout_us: u64,
        /// Memory that was sent, in MiB.
        #[serde(default)]
        sent_mib: u64,
        /// The most that the link carried per second, in MiB; 0: not told.
        #[serde(default)]
        link_mib_s: u64,
    },
    /// It runs on where it was, unless the words say otherwise.
    Failed {
        /// What failed, with its cause.
        why: String,
    },
}

/// A lease as somebody read it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseSeen {
    /// Its epoch; 0 if there never was one.
    pub epoch: u64,
    /// Who holds it; nobody after a release.
    pub holder: Option<Holder>,
}

impl From<Option<&LeaseRecord>> for LeaseSeen {
    fn from(last: Option<&LeaseRecord>) -> Self {
        last.map(|record| Self {
            epoch: record.epoch,
            holder: record.holder.clone(),
        })
        .unwrap_or_default()
    }
}
