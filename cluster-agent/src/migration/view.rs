//! What is asked of a migration and what is told about it.

use std::net::SocketAddr;

use cluster_core::messages::{MoveAnswer, MoveOutcome};
use cluster_core::model::HostId;
use serde::{Deserialize, Serialize};
use vmm_core::migration::{Forecast, Progress};

/// Where a guest shall go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateGuest {
    /// The host; the best one if none is named.
    #[serde(default)]
    pub to: Option<HostId>,
}

/// A migration that was ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ordered {
    /// Where the guest is.
    pub from: HostId,
    /// Where it goes.
    pub to: HostId,
    /// What the order is known by.
    pub number: u64,
}

/// What a dry run found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsed {
    /// Where the guest is.
    pub from: HostId,
    /// Where it would go.
    pub to: HostId,
    /// What would come of it.
    pub forecast: Forecast,
}

/// How a migration goes, or went, as its source knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationView {
    /// Where the guest goes.
    pub to: HostId,
    /// What the order is known by.
    pub number: u64,
    /// How far the source's VMM is.
    pub progress: Progress,
    /// It is over, well or not.
    pub over: bool,
}

impl MigrationView {
    /// One that has just been ordered.
    pub fn new(to: HostId, number: u64) -> Self {
        Self {
            to,
            number,
            progress: Progress::begun(),
            over: false,
        }
    }

    /// One that was ordered and does not begin.
    pub fn refused(answer: &MoveAnswer) -> Self {
        let mut view = Self::new(answer.to.clone(), answer.number);
        if let MoveOutcome::Failed { why } = &answer.outcome {
            view.progress.error = Some(why.clone());
        }
        view.over = true;
        view
    }
}

/// Which host's word about a migration is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OnHost {
    /// The host that the guest leaves.
    pub on: HostId,
}

/// Where a guest that is to arrive is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Berth {
    /// Address and port for the source's VMM.
    pub address: SocketAddr,
}
