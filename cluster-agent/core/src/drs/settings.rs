//! What an operator may set about balancing.

use serde::{Deserialize, Serialize};

use crate::balance::{Balance, Bar};
use crate::demand::Smoothing;
use crate::moves::MOVES_MAX;
use crate::settings::Settings;

/// How much is done without asking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Automation {
    /// Guests start where somebody says; moves are recommended.
    Manual,
    /// Guests are placed when they start; moves are recommended.
    #[default]
    Partial,
    /// Moves are carried out.
    Full,
}

impl Automation {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Partial => "partial",
            Self::Full => "full",
        }
    }
}

/// Balancing, cluster-wide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct DrsSettings {
    /// How much is done without asking.
    pub automation: Automation,
    /// 1 (conservative) to 5 (eager): how much more than it costs a move must gain.
    pub threshold: u8,
    /// A plan is made so often, in milliseconds.
    pub round_ms: u64,
    /// Migrations at a time in the whole cluster.
    pub at_once: u32,
    /// Migrations at a time into or out of one host.
    pub at_once_per_host: u32,
    /// Migrations at a time between two hosts, both ways together.
    pub at_once_per_link: u32,
    /// How fast the demand that is believed follows the one that is seen.
    pub smoothing: Smoothing,
}

impl Default for DrsSettings {
    fn default() -> Self {
        let balance = Balance::default();
        Self {
            automation: Automation::default(),
            threshold: balance.threshold,
            round_ms: 60_000,
            at_once: balance.at_once,
            at_once_per_host: balance.at_once_per_host,
            at_once_per_link: balance.at_once_per_link,
            smoothing: Smoothing::default(),
        }
    }
}

impl DrsSettings {
    /// What a move for the balance must gain.
    pub fn bar(&self) -> Bar {
        let threshold = self.threshold;
        Balance {
            threshold,
            ..Balance::default()
        }
        .bar()
    }
}

impl Settings {
    /// The settings as the planner takes them.
    pub fn balance(&self) -> Balance {
        Balance {
            threshold: self.drs.threshold,
            at_once: self.drs.at_once,
            // A file written by hand may say more than a host agrees to.
            at_once_per_host: self.drs.at_once_per_host.min(MOVES_MAX as u32),
            at_once_per_link: self.drs.at_once_per_link,
            admission: self.admission,
            enforcement: self.enforcement,
            ..Balance::default()
        }
    }
}
