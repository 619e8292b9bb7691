//! What the API says and is told, as JSON. Units are in the names.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use cluster_core::model::{Desired, GuestId, HostId, Priority, Readiness, Resources};
use cluster_core::observation::GuestRates;
use serde::{Deserialize, Serialize};

use crate::guest_file::CpuModel;

/// The whole cluster on one screen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Identity of the cluster, from `cluster.toml`.
    pub cluster_id: String,
    /// The host that leads, if it answers. Without it this is what one host knows by itself:
    /// guests on others are `unknown`.
    pub leader: Option<HostId>,
    /// Hosts by name.
    pub hosts: Vec<HostView>,
    /// Guests by name.
    pub guests: Vec<GuestView>,
    /// What could fail or be started without breaking a promise, in words.
    pub reserve: String,
    /// How well off the guests are and how even the hosts; only the leader knows.
    #[serde(default)]
    pub balance: Option<BalanceView>,
    /// What is wrong now; empty when all is well.
    pub problems: Vec<Problem>,
}

/// How a cluster does; docs/drs.md has the formulas. All in thousandths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalanceView {
    /// All CPU that guests get over all that they want.
    pub met_permille: u64,
    /// Standard deviation of the host loads.
    pub imbalance_permille: u64,
    /// Guests that get too little of the CPU they want.
    pub starving: Vec<String>,
}

/// Something that is wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong.
    pub what: String,
    /// What helps.
    pub remedy: String,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostView {
    /// Its name.
    pub name: HostId,
    /// Where its agent answers other members.
    pub address: SocketAddr,
    /// alive, suspect, isolated, without storage, dead, leaving, in maintenance.
    pub health: String,
    /// What guests may use of it.
    pub capacity: Resources,
    /// What is guaranteed to the guests it runs.
    pub reserved: Resources,
    /// What its guests want now.
    pub demand: Resources,
    /// Demand over capacity, in thousandths: the larger of CPU and memory.
    #[serde(default)]
    pub load_permille: u64,
    /// What everything on it uses, guests and all, once that was observed.
    #[serde(default)]
    pub used: Option<Resources>,
    /// What its guests read from and write to their disks, in KiB/s.
    #[serde(default)]
    pub disk_kib_s: u64,
    /// What its guests receive and send, in KiB/s.
    #[serde(default)]
    pub net_kib_s: u64,
    /// Guests it runs.
    pub guests: u64,
    /// Version of its agent.
    pub version: String,
    /// Processor features that all other hosts have and it has not: guests do without them.
    #[serde(default)]
    pub cpu_lacks: Vec<String>,
}

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestView {
    /// Its name.
    pub name: String,
    /// The host that holds its lease, if one does.
    pub host: Option<HostId>,
    /// What is observed: stopped, waiting, starting, running, paused, arriving; unknown while the
    /// host that has its lease has not said.
    pub state: String,
    /// What its owner wants.
    pub desired: Desired,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Processor time it wants now, in thousandths of a core.
    pub demand_mcpu: u64,
    /// How much it gets of the CPU that it wants, in thousandths.
    #[serde(default)]
    pub score_permille: Option<u64>,
    /// What it did over the last seconds, once that was observed.
    #[serde(default)]
    pub rates: Option<GuestRates>,
    /// Order of restart.
    pub priority: Priority,
    /// Restarted when its host is lost.
    pub protected: bool,
    /// Guests that are started before it, and how far they have to be.
    #[serde(default)]
    pub after: BTreeMap<GuestId, Readiness>,
    /// Epoch of its lease: how often the right to run it changed hands.
    pub epoch: u64,
    /// Starts that failed since it last ran or somebody acted.
    #[serde(default)]
    pub failed_starts: u32,
    /// Why it is in this state, when that is worth saying.
    pub reason: Option<String>,
}

/// Where a new guest's first disk comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFrom {
    /// A thin qcow2 overlay on the image: there at once.
    #[default]
    Overlay,
    /// A full copy of the image.
    Copy,
}

/// A new guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateGuest {
    /// Its name: letters, digits, `-`.
    pub name: String,
    /// The image of the datastore it is made from.
    pub image: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// How its disk is made from the image's.
    #[serde(default)]
    pub disk_from: DiskFrom,
    /// What its processors can do.
    #[serde(default)]
    pub cpu: CpuModel,
    /// Kernel command line instead of the image's.
    pub cmdline: Option<String>,
    /// Order of restart.
    #[serde(default)]
    pub priority: Priority,
    /// Restarted when its host is lost.
    pub protected: bool,
    /// Guaranteed processor time, in thousandths of a core.
    #[serde(default)]
    pub reserve_mcpu: u64,
    /// Guests that are started before it, and how far they have to be.
    #[serde(default)]
    pub after: BTreeMap<GuestId, Readiness>,
    /// Start it as soon as it exists.
    pub start: bool,
}

/// What is to change of a guest; what is not said stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EditGuest {
    /// Only if this is its revision; else it is refused with a conflict.
    pub revision: Option<u64>,
    /// Virtual processors, from its next start.
    pub cpus: Option<u32>,
    /// Memory, in MiB, from its next start.
    pub memory_mib: Option<u64>,
    /// What its processors can do, from its next start.
    pub cpu: Option<CpuModel>,
    /// Kernel command line, from its next start; empty: the image's.
    pub cmdline: Option<String>,
    /// Order of restart.
    pub priority: Option<Priority>,
    /// Restarted when its host is lost.
    pub protected: Option<bool>,
    /// Guaranteed processor time, in thousandths of a core.
    pub reserve_mcpu: Option<u64>,
    /// Seconds from its power button to the cut when it is stopped.
    pub grace_s: Option<u64>,
    /// All guests that are started before it, and how far they have to be.
    pub after: Option<BTreeMap<GuestId, Readiness>>,
}

/// A copy of a guest that is off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneGuest {
    /// The name of the copy.
    pub name: String,
}

/// How a guest is to stop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopGuest {
    /// Press the power button and wait so long before the power goes off; 0: off at once. The
    /// guest's own grace without.
    pub grace_s: Option<u64>,
}

/// Something that happened, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Number in the cluster's history.
    pub number: u64,
    /// When, in milliseconds since 1970 on the clock of the host that recorded it.
    pub unix_ms: u64,
    /// The host that recorded it.
    pub host: HostId,
    /// The host or guest it is about.
    pub about: String,
    /// What happened, in a word: `created`, `started`, `migrated`, `host-dead`, ...
    pub what: String,
    /// Why and how, in words and numbers.
    pub detail: String,
}
