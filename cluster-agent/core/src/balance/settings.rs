//! What an operator may choose about balancing.

use serde::{Deserialize, Serialize};

use crate::settings::{AdmissionPolicy, Enforcement};

/// What balancing makes smaller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// Demand that has to wait: see [`super::contention`].
    #[default]
    Waiting,
    /// Ganeti's: unequal shares of configured memory and cores: see [`super::spread`].
    Spread,
}

/// How to balance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Balance {
    /// What to make smaller.
    pub measure: Measure,
    /// 1 (conservative) to 5 (eager): how much more than it costs a move must gain.
    pub threshold: u8,
    /// No more steps than this in a plan; the next round goes on from there.
    pub max_steps: u32,
    /// Migrations at a time in the whole cluster.
    pub at_once: u32,
    /// Migrations at a time into or out of one host.
    pub at_once_per_host: u32,
    /// Migrations at a time between two hosts, both ways together.
    pub at_once_per_link: u32,
    /// What stays free for the loss of hosts.
    pub admission: AdmissionPolicy,
    /// `Warn`: the reserve is not kept.
    pub enforcement: Enforcement,
    /// For [`Measure::Spread`]: a step must gain this many millionths ...
    pub min_gain_ppm: u64,
    /// ... once the score is below this many.
    pub min_gain_below_ppm: u64,
}

impl Default for Balance {
    fn default() -> Self {
        Self {
            measure: Measure::Waiting,
            threshold: 3,
            max_steps: 250,
            at_once: 8,
            at_once_per_host: 2,
            at_once_per_link: 2,
            admission: AdmissionPolicy::default(),
            enforcement: Enforcement::default(),
            min_gain_ppm: 10_000,
            min_gain_below_ppm: 100_000,
        }
    }
}

/// What a threshold means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// A step must gain this many times what it costs.
    pub times_cost: u64,
    /// The host it relieves must, even without the guest, be this much more loaded than the
    /// other, in thousandths: what one guest's coming or going makes is no reason to move.
    pub gap_permille: u64,
    /// Below this load a host needs no relief, in thousandths.
    pub calm_permille: u64,
}

impl Balance {
    /// What the threshold means; one outside 1..=5 counts as the nearest.
    pub fn bar(&self) -> Bar {
        let (times_cost, gap_permille, calm_permille) = match self.threshold {
            0 | 1 => (32, 250, 800),
            2 => (16, 180, 750),
            3 => (8, 120, 650),
            4 => (4, 70, 450),
            _ => (1, 10, 0),
        };
        Bar {
            times_cost,
            gap_permille,
            calm_permille,
        }
    }
}
