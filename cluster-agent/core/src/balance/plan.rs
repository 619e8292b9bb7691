//! A plan: what to move, in which order, and why.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::model::{Cluster, GuestId, HostId};
use crate::score::Assessment;

/// One live migration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Move {
    /// Who.
    pub guest: GuestId,
    /// Source.
    pub from: HostId,
    /// Target.
    pub to: HostId,
}

/// Why a step is recommended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Why {
    /// It evens the load.
    Balance,
    /// It evens the load where no single move could: two guests change places.
    Swap,
    /// It mends a broken rule.
    Rule {
        /// The rule's name.
        rule: String,
    },
    /// It grants a soft rule's wish.
    Wish,
    /// It empties a host for maintenance.
    Maintenance {
        /// The host.
        host: HostId,
    },
}

/// What a step does to a host's load, in thousandths of its capacity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LoadChange {
    /// The host.
    pub host: HostId,
    /// Load before the step.
    pub before_permille: u64,
    /// Load after it.
    pub after_permille: u64,
}

/// A step of a plan with its explanation: one move, or moves that make sense only together
/// (a swap, the guests of a keep-together rule).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Recommendation {
    /// In this order.
    pub moves: Vec<Move>,
    /// Why.
    pub why: Why,
    /// How much smaller the measure gets: thousandths of a core of waiting, or for the
    /// spread millionths. Negative where a rule or maintenance asks for a sacrifice.
    pub gain: i64,
    /// What it costs, in the unit of the gain.
    pub cost: i64,
    /// Predicted time of the migrations, one after the other.
    pub migration_ms: u64,
    /// The longest that one of the guests stands still, as predicted; 0: not predicted.
    #[serde(default)]
    pub blackout_us: u64,
    /// Memory of the guests that move.
    pub memory_mib: u64,
    /// What it does to the source and the target.
    pub loads: Vec<LoadChange>,
    /// Names of the rules that speak of the guests that move, all obeyed afterwards unless
    /// the plan lists them as unresolved.
    pub obeys: Vec<String>,
    /// What and why, in words.
    pub words: String,
    /// What it gains and costs, in words.
    pub effect: String,
    /// What the migrations will come to, and what that rests on, in words.
    pub migration: String,
}

/// Something that is wrong and that the plan cannot mend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unresolved {
    /// What.
    pub what: String,
    /// Why not.
    pub because: String,
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Plan {
    /// What to do, in this order.
    pub steps: Vec<Recommendation>,
    /// The steps by number (from 0), in groups that may be carried out at the same time,
    /// one group after the other.
    pub waves: Vec<Vec<usize>>,
    /// What is wrong and cannot be mended.
    pub unresolved: Vec<Unresolved>,
    /// The cluster before.
    pub before: Assessment,
    /// The cluster after all steps.
    pub after: Assessment,
}

impl Plan {
    /// All moves in order.
    pub fn moves(&self) -> impl Iterator<Item = &Move> {
        self.steps.iter().flat_map(|step| &step.moves)
    }

    /// Memory of all guests that move.
    pub fn memory_mib(&self) -> u64 {
        self.steps.iter().map(|step| step.memory_mib).sum()
    }

    /// The cluster as it is once everything is done.
    pub fn apply(&self, cluster: &mut Cluster) {
        for one in self.moves() {
            if let Some(guest) = cluster.guests.get_mut(&one.guest) {
                guest.host = Some(one.to.clone());
            }
        }
    }
}
