//! What an operator may set for the whole cluster, and the timings the cores run on.
//!
//! Everything has a default that is right for most; `cluster.toml` holds what differs.

use alloc::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use storage_core::timing::Timing;

use crate::drs::DrsSettings;
use crate::model::{GroupId, Guest, GuestId, HostId, Resources, Rule};
use alloc::string::String;

/// What admission keeps free for the loss of hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdmissionPolicy {
    /// Anything that fits now is admitted.
    Off,
    /// The guests of any so many hosts can be packed onto the rest.
    TolerateHostFailures(u32),
    /// So many percent of all CPU and memory stay unreserved.
    ReservePercent(u32),
}

impl Default for AdmissionPolicy {
    fn default() -> Self {
        Self::TolerateHostFailures(1)
    }
}

/// What happens when the admission policy would be broken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Enforcement {
    /// The request is refused.
    #[default]
    Refuse,
    /// The request is carried out and the operator is warned.
    Warn,
}

/// What a host does with its guests when it is cut off from its peers but not from storage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IsolationResponse {
    /// They go on running where they are.
    #[default]
    Leave,
    /// They are shut down cleanly and started elsewhere.
    ShutDown,
    /// They are switched off and started elsewhere.
    PowerOff,
}

/// How long is waited for what, beyond the numbers of the lease. In milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Timings {
    /// Network silence after which a peer is suspect.
    pub suspect_after_ms: u64,
    /// Network silence after which a peer that beats on the datastore counts as isolated.
    pub isolated_after_ms: u64,
    /// How much later each further host contends for a vacant lead.
    pub contend_stagger_ms: u64,
    /// How long an order to start a guest may go unanswered.
    pub order_patience_ms: u64,
    /// How long a guest waits for one it depends on before it is started without.
    pub dependency_patience_ms: u64,
    /// First pause before a guest whose start failed everywhere is tried again; doubles.
    pub retry_after_ms: u64,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            suspect_after_ms: 1_000,
            isolated_after_ms: 2_000,
            contend_stagger_ms: 200,
            order_patience_ms: 5_000,
            dependency_patience_ms: 300_000,
            retry_after_ms: 5_000,
        }
    }
}

/// What an operator may set for the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Settings {
    /// What is kept free for the loss of hosts.
    pub admission: AdmissionPolicy,
    /// Refuse or warn.
    pub enforcement: Enforcement,
    /// What a cut-off host does with its guests.
    pub isolation_response: IsolationResponse,
    /// How many guests may be booting on one host at a time.
    pub starts_per_host: u32,
    /// How often a guest's start is tried before it is given up until somebody acts.
    pub start_attempts: u32,
    /// Timings.
    pub timings: Timings,
    /// Balancing.
    pub drs: DrsSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            admission: AdmissionPolicy::default(),
            enforcement: Enforcement::default(),
            isolation_response: IsolationResponse::default(),
            starts_per_host: 8,
            start_attempts: 8,
            timings: Timings::default(),
            drs: DrsSettings::default(),
        }
    }
}

/// A host as the datastore describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    /// What guests may use.
    pub capacity: Resources,
    /// Groups it belongs to.
    #[serde(default)]
    pub groups: BTreeSet<GroupId>,
    /// The operator wants it empty.
    #[serde(default)]
    pub maintenance: bool,
    /// It is about to leave the cluster for good.
    #[serde(default)]
    pub leaving: bool,
}

/// What is written on the datastore about the cluster, except what changes by the second
/// (heartbeats, leases). The `host` of a guest here is ignored: its lease tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Settings.
    #[serde(default)]
    pub settings: Settings,
    /// The numbers of the lease protocol.
    #[serde(default)]
    pub lease: Timing,
    /// Disks are fenced at a takeover, so that the short watch is enough.
    #[serde(default)]
    pub fencing: bool,
    /// Hosts by name.
    pub hosts: BTreeMap<HostId, HostEntry>,
    /// Guests by name.
    pub guests: BTreeMap<GuestId, Guest>,
    /// Rules by name.
    #[serde(default)]
    pub rules: BTreeMap<String, Rule>,
}

/// The waits the cores run on, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// Between two network heartbeats.
    pub beat_us: u64,
    /// Network silence that makes suspect.
    pub suspect_us: u64,
    /// Network silence that makes isolated.
    pub isolated_us: u64,
    /// Silence on the datastore after which a guest's lease has lapsed.
    pub lapse_us: u64,
    /// Silence on the datastore after which the lead has lapsed. Shorter where disks are
    /// not fenced: a leader writes to no disk, so no late write has to die.
    pub lead_lapse_us: u64,
    /// Between two contenders.
    pub stagger_us: u64,
}

impl Inventory {
    /// The waits that follow from settings and lease.
    pub fn waits(&self) -> Waits {
        let timings = &self.settings.timings;
        Waits {
            beat_us: self.lease.interval_us(),
            suspect_us: timings.suspect_after_ms * 1000,
            isolated_us: timings.isolated_after_ms * 1000,
            lapse_us: self.lease.watch_us(self.fencing),
            lead_lapse_us: self.lease.watch_us(true),
            stagger_us: timings.contend_stagger_ms * 1000,
        }
    }
}
