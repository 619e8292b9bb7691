//! The cluster as the decisions see it: hosts, guests, rules. Plain values.
//!
//! Units: CPU in milli-cores (`mcpu`, 1000 is one core of the reference host), memory in
//! MiB. All arithmetic is on integers so that every host computes the same answer.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::drs::Automation;
use crate::migration_cost::MigrationCost;

/// A host's name, unique in the cluster.
pub type HostId = String;
/// A guest's name, unique in the cluster.
pub type GuestId = String;
/// A host group's name, unique in the cluster.
pub type GroupId = String;

/// An amount of what a host gives and a guest takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Resources {
    /// Processor time, in thousandths of a core.
    pub mcpu: u64,
    /// Memory, in MiB.
    pub memory_mib: u64,
}

impl Resources {
    /// So much processor time and memory.
    pub fn new(mcpu: u64, memory_mib: u64) -> Self {
        Self { mcpu, memory_mib }
    }

    /// Does `self` fit into `room`?
    pub fn fits(self, room: Self) -> bool {
        self.mcpu <= room.mcpu && self.memory_mib <= room.memory_mib
    }

    /// Both amounts together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            mcpu: self.mcpu.saturating_add(other.mcpu),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
        }
    }

    /// What is left of `self` without `other`; nothing where `other` is more.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            mcpu: self.mcpu.saturating_sub(other.mcpu),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
        }
    }
}

impl fmt::Display for Resources {
    /// As people say it: `2.5 cores and 4 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cores, rest) = (self.mcpu / 1000, self.mcpu % 1000 / 100);
        match (cores, rest) {
            (1, 0) => f.write_str("1 core and ")?,
            (_, 0) => write!(f, "{cores} cores and ")?,
            _ => write!(f, "{cores}.{rest} cores and ")?,
        }
        f.write_str(&self.memory_words())
    }
}

impl Resources {
    /// The memory alone, as people say it.
    pub fn memory_words(self) -> String {
        match (self.memory_mib / 1024, self.memory_mib % 1024 * 10 / 1024) {
            (0, _) => format!("{} MiB", self.memory_mib),
            (gib, 0) => format!("{gib} GiB"),
            (gib, tenth) => format!("{gib}.{tenth} GiB"),
        }
    }
}

/// What a host may be asked to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostMode {
    /// Runs guests and receives new ones.
    #[default]
    Active,
    /// Keeps its guests but receives none for now: it cannot be reached, or it came back
    /// only just and flaps.
    Quiet,
    /// Is being emptied, or is empty, for maintenance: receives nothing.
    Maintenance,
    /// Is not there: its guests have to run elsewhere.
    Lost,
}

impl HostMode {
    /// May a guest be started on or moved to it?
    pub fn receives(self) -> bool {
        self == Self::Active
    }

    /// Does it run guests, now and in what admission counts on?
    pub fn serves(self) -> bool {
        matches!(self, Self::Active | Self::Quiet)
    }
}

/// A host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// What guests may use: the machine less what the host itself needs
    /// ([`crate::own_needs`]).
    pub capacity: Resources,
    /// What it may be asked to do.
    #[serde(default)]
    pub mode: HostMode,
    /// Groups it belongs to, for guest-host rules.
    #[serde(default)]
    pub groups: BTreeSet<GroupId>,
}

/// Who is restarted first after a failure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// Before all others.
    Highest,
    /// Early.
    High,
    /// The default.
    #[default]
    Medium,
    /// Late.
    Low,
    /// After all others.
    Lowest,
}

/// What the operator wants of a guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Desired {
    /// It shall run, wherever there is room.
    #[default]
    Running,
    /// It shall not run.
    Stopped,
}

/// What one guest waits for in another before it is started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Readiness {
    /// Its virtual machine runs.
    #[default]
    Running,
    /// The software inside it has said that it lives.
    Heartbeat,
    /// It has run for so many milliseconds.
    DelayMs(u64),
}

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// The host that runs it, if one does.
    pub host: Option<HostId>,
    /// What the operator wants of it. A guest that shall run and has no host waits for one.
    #[serde(default)]
    pub desired: Desired,
    /// Revision of its spec: of two readings the later has the larger one.
    #[serde(default)]
    pub revision: u64,
    /// What its spec grants it: vCPUs (as `mcpu`) and configured memory.
    pub configured: Resources,
    /// What is guaranteed to it; admission and packing count this. Memory is at least what
    /// it was configured with unless overcommit is allowed.
    pub reservation: Resources,
    /// What it wants now: smoothed CPU demand (use plus run-delay) and active memory.
    pub demand: Resources,
    /// Order of restart.
    #[serde(default)]
    pub priority: Priority,
    /// Guests that are started before it, and how far they have to be.
    #[serde(default)]
    pub after: BTreeMap<GuestId, Readiness>,
    /// Restarted by HA when its host is lost.
    #[serde(default = "yes")]
    pub protected: bool,
    /// May be moved automatically.
    #[serde(default = "yes")]
    pub movable: bool,
    /// How much is done with it without asking, if not what holds for the cluster.
    #[serde(default)]
    pub automation: Option<Automation>,
    /// What a live migration of it is predicted to come to.
    #[serde(default)]
    pub migration: MigrationCost,
}

fn yes() -> bool {
    true
}

impl Guest {
    /// A guest without a host that is guaranteed, and wants, all it is configured with;
    /// everything else at its default.
    pub fn sized(size: Resources) -> Self {
        Self {
            host: None,
            desired: Desired::Running,
            revision: 0,
            configured: size,
            reservation: size,
            demand: size,
            priority: Priority::default(),
            after: BTreeMap::new(),
            protected: true,
            movable: true,
            automation: None,
            migration: MigrationCost::default(),
        }
    }

    /// Does it hold resources: it runs, or is wanted to?
    pub fn takes_room(&self) -> bool {
        self.host.is_some() || self.desired == Desired::Running
    }
}

/// A wish about where guests run. Hard rules bind; soft ones cost.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Rule {
    /// These guests run on one host.
    KeepTogether {
        /// Two or more guests.
        guests: BTreeSet<GuestId>,
    },
    /// No two of these guests run on one host.
    KeepApart {
        /// Two or more guests.
        guests: BTreeSet<GuestId>,
    },
    /// These guests and the hosts of one group.
    GuestsToHosts {
        /// The guests it binds.
        guests: BTreeSet<GuestId>,
        /// The host group.
        group: GroupId,
        /// On these hosts, or off them.
        affinity: Affinity,
        /// `true`: must; `false`: should.
        hard: bool,
    },
}

/// Direction of a guest-host rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Affinity {
    /// Run on a host of the group.
    On,
    /// Run on a host outside the group.
    Off,
}

/// The whole cluster at one instant. Maps are ordered so that decisions are too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Hosts by name.
    pub hosts: BTreeMap<HostId, Host>,
    /// Guests by name.
    pub guests: BTreeMap<GuestId, Guest>,
    /// Rules by name.
    #[serde(default)]
    pub rules: BTreeMap<String, Rule>,
}
