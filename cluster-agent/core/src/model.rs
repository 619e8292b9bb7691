//! The cluster as the decisions see it: hosts, guests, rules. Plain values.
//!
//! Units: CPU in milli-cores (`mcpu`, 1000 is one core of the reference host), memory in
//! MiB. All arithmetic is on integers so that every host computes the same answer.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;

use serde::{Deserialize, Serialize};

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

/// What a host may be asked to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostMode {
    /// Runs guests and receives new ones.
    #[default]
    Active,
    /// Is being emptied, or is empty, for maintenance: receives nothing.
    Maintenance,
    /// Is not there: its guests have to run elsewhere.
    Lost,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// What guests may use: the machine less what the host itself needs.
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

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// The host that runs it, if one does.
    pub host: Option<HostId>,
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
    /// Restarted by HA when its host is lost.
    #[serde(default = "yes")]
    pub protected: bool,
    /// May be moved automatically.
    #[serde(default = "yes")]
    pub movable: bool,
    /// Predicted cost of a live migration: time on the wire in milliseconds.
    #[serde(default)]
    pub migration_ms: u64,
}

fn yes() -> bool {
    true
}

/// A wish about where guests run. Hard rules bind; soft ones cost.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
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
