//! Numbers for Prometheus: what this agent has counted, and what it sees now.
//! docs/operations.md lists the names.

pub mod process;
pub mod routes;
pub mod text;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use cluster_core::messages::MoveOutcome;
use std::sync::Arc;

/// Weight of a new round trip in the smoothed one, as of TCP's (RFC 6298): one eighth.
const SMOOTHING: u32 = 8;

/// What an agent counts from its start on.
#[derive(Debug, Default)]
pub struct Metrics {
    counts: Mutex<Counts>,
}

/// The counts.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Guests that were started here because an operator wanted it.
    pub starts: u64,
    /// Guests that were started here because their host was lost.
    pub failovers: u64,
    /// Migrations out of this host that an operator ordered and that DRS, rules or maintenance
    /// did.
    pub migrations_begun: [u64; 2],
    /// Migrations out of this host that arrived.
    pub migrations_done: u64,
    /// Migrations out of this host that did not; the guest went on here.
    pub migrations_failed: u64,
    /// All blackouts together, in microseconds.
    pub blackout_us: u64,
    /// Links to other members, by name.
    pub peers: BTreeMap<String, Link>,
    /// Requests by who asked and what status they got.
    pub requests: BTreeMap<(&'static str, u16), u64>,
}

/// How messages to a member fare.
#[derive(Debug, Clone, Copy, Default)]
pub struct Link {
    /// Messages that were taken.
    pub delivered: u64,
    /// Messages that were not.
    pub lost: u64,
    /// Smoothed time from sending one to its receipt.
    pub round_trip: Duration,
}

impl Metrics {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it, as it is now.
    pub fn read(&self) -> Counts {
        self.counts().clone()
    }

    /// A guest is started here.
    pub fn starts(&self, is_failover: bool) {
        let mut counts = self.counts();
        if is_failover {
            counts.failovers += 1;
        } else {
            counts.starts += 1;
        }
    }

    /// A guest begins to leave.
    pub fn migrates(&self, by_operator: bool) {
        self.counts().migrations_begun[usize::from(!by_operator)] += 1;
    }

    /// A guest has left, or has not.
    pub fn migrated(&self, outcome: &MoveOutcome) {
        let mut counts = self.counts();
        match outcome {
            MoveOutcome::Moved { blackout_us, .. } => {
                counts.migrations_done += 1;
                counts.blackout_us += blackout_us;
            }
            MoveOutcome::Failed { .. } => counts.migrations_failed += 1,
        }
    }

    /// A message to `peer` was taken after so long.
    pub fn delivered(&self, peer: &str, took: Duration) {
        let mut counts = self.counts();
        let link = counts.peers.entry(peer.to_owned()).or_default();
        link.round_trip = match link.delivered {
            0 => took,
            _ => (link.round_trip * (SMOOTHING - 1) + took) / SMOOTHING,
        };
        link.delivered += 1;
    }

    /// So many messages to `peer` are lost.
    pub fn lost(&self, peer: &str, messages: u64) {
        let mut counts = self.counts();
        counts.peers.entry(peer.to_owned()).or_default().lost += messages;
    }

    /// These are the peers now; nothing is kept of others.
    pub fn keep_peers(&self, is_peer: impl Fn(&str) -> bool) {
        self.counts().peers.retain(|peer, _| is_peer(peer));
    }

    /// Somebody was answered.
    pub fn answered(&self, from: &'static str, status: u16) {
        *self.counts().requests.entry((from, status)).or_default() += 1;
    }
}

/// Counts requests from `from` by how they were answered.
pub async fn count(
    State((metrics, from)): State<(Arc<Metrics>, &'static str)>,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    metrics.answered(from, response.status().as_u16());
    response
}
