//! What is asked of a migration, what it says on its way, and what it comes to.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::converge::Goal;

/// Most data connections of one migration.
pub const CONNECTIONS_MAX: u32 = 16;
/// Data connections of a migration that says nothing else.
pub const CONNECTIONS_DEFAULT: u32 = 2;

/// `PUT /v1/migrate` on the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// Where the target listens: `HOST:PORT`.
    pub to: String,
    /// Connections that carry memory.
    #[serde(default = "default_connections")]
    pub connections: u32,
    /// When to switch over.
    #[serde(default)]
    pub goal: Goal,
    /// Cap on the rate of all connections together, in bytes per second; 0: none.
    #[serde(default)]
    pub bandwidth_max: u64,
    /// Compare a hash of all guest memory on both sides before the commit.
    #[serde(default)]
    pub verify: bool,
    /// Directory with the certificates for mutual TLS; plain TCP without one.
    #[serde(default)]
    pub tls_dir: Option<String>,
}

fn default_connections() -> u32 {
    CONNECTIONS_DEFAULT
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The two sides find out whether they fit together.
    Handshake,
    /// Memory is on its way while the guest runs.
    Copying,
    /// The guest stands still; the rest is on its way.
    SwitchOver,
    /// The right to run the guest changes hands.
    Commit,
    /// The guest runs on the target.
    Done,
    /// It failed before the commit; the guest runs on here.
    Failed,
    /// The guest stands still here: whether the target has it could not be found out.
    Uncertain,
}

/// `GET /v1/migrate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// How far it is.
    pub phase: Phase,
    /// Round of pre-copy, from 1.
    pub round: u32,
    /// Bytes of memory sent so far.
    pub sent_bytes: u64,
    /// Bytes left of this round.
    pub left_bytes: u64,
    /// Rate of the last round, in bytes per second.
    pub rate: u64,
    /// Bytes dirtied in the last round.
    pub dirty_bytes: u64,
    /// Blackout if it were switched over now, in microseconds.
    pub predicted_blackout_us: u64,
    /// What it came to, when it is over.
    pub summary: Option<Summary>,
    /// Why it failed.
    pub error: Option<String>,
}

impl Progress {
    /// Of a migration that has just been asked for.
    pub fn begun() -> Self {
        Self {
            phase: Phase::Handshake,
            round: 0,
            sent_bytes: 0,
            left_bytes: 0,
            rate: 0,
            dirty_bytes: 0,
            predicted_blackout_us: 0,
            summary: None,
            error: None,
        }
    }
}

/// What a migration came to, as the source measured it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// From the request to the guest running on the target, in microseconds.
    pub total_us: u64,
    /// From stopping the guest to the target's word that it runs, in microseconds.
    pub blackout_us: u64,
    /// For how long the guest did not run: without the way of the target's word back, in
    /// microseconds.
    #[serde(default)]
    pub guest_blackout_us: u64,
    /// What had been predicted, in microseconds.
    pub predicted_blackout_us: u64,
    /// Bytes of memory sent.
    pub sent_bytes: u64,
    /// Bytes of memory that were zero or never touched, and so were not sent.
    pub skipped_bytes: u64,
    /// Rounds of pre-copy.
    pub rounds: u32,
    /// Memory was compared on both sides and found equal.
    pub verified: bool,
}
