//! The claim of the leader lease.

use std::thread;
use std::time::{Duration, Instant};

use cluster_core::event::Event;
use shared_storage::StoreError;
use shared_storage::clock::boottime_us;
use shared_storage::lease::{HeldLease, LeaseFiles, Seen};
use tracing::{info, warn};

use super::{Input, STORAGE_LIMIT};
use crate::guests::Host;

/// A leader that is gone shows so within two of its heartbeats after its lease was read.
const CLAIM_LIMIT: Duration = Duration::from_secs(2);
/// How often the claim is tried meanwhile.
const CLAIM_PAUSE: Duration = Duration::from_millis(50);

/// Try to become the leader, and say what came of it.
pub(super) fn contend(host: &Host, from_epoch: u64) {
    let files = host.store.leader_lease();
    if let Err(error) = free_of_strangers(host, &files) {
        warn!(%error, "cannot free the lead of a host that is no member any more");
    }
    let claimed = files.look().and_then(|seen| {
        let found = seen.last.as_ref().map_or(0, |last| last.epoch);
        let free = seen.last.as_ref().is_none_or(|last| last.holder.is_none());
        if found == from_epoch || free {
            claim_lead(host, &files, &seen)
        } else {
            Ok(None)
        }
    });
    match claimed {
        Ok(Some(lease)) => {
            let _ = host.driver.blocking_send(Input::Leads(lease));
        }
        Ok(None) => {}
        Err(error) => warn!(%error, "cannot contend for the lead"),
    }
    let sent_us = boottime_us();
    if let Ok(last) = files.last() {
        let event = Event::LeaderLease(last.as_ref().into());
        let _ = host.driver.blocking_send(Input::Brain(sent_us, event));
    }
}

/// A host that is not listed any more has left, or was dead when it was forgotten; there is no
/// heartbeat of it that could be watched.
fn free_of_strangers(host: &Host, files: &LeaseFiles) -> Result<(), StoreError> {
    let holder = files.last()?.and_then(|last| last.holder);
    let Some(holder) = holder else { return Ok(()) };
    // The file itself is asked for: a listing may be older than a host that has just joined.
    let heartbeat = host.store.heartbeat_path(&holder.host)?;
    let listed = heartbeat.try_exists();
    if listed.map_err(StoreError::io("look at", &heartbeat))? {
        return Ok(());
    }
    info!(holder = holder.host, "the leader is no member any more");
    match files.force_free("it is no member any more") {
        // Somebody else was faster.
        Err(StoreError::Changed { .. }) => Ok(()),
        other => other.map(drop),
    }
}

/// The lead, or nothing if it is another's. Only a heartbeat read *after* the lease was looked at
/// tells that its holder is gone, so the first tries are bound to be refused.
fn claim_lead(
    host: &Host,
    files: &LeaseFiles,
    seen: &Seen,
) -> Result<Option<HeldLease>, StoreError> {
    let give_up = Instant::now() + CLAIM_LIMIT;
    loop {
        let watcher = host.watcher_for_claim();
        let claimed = HeldLease::claim(
            &host.keeper,
            files.clone(),
            seen,
            Some(&watcher),
            None,
            STORAGE_LIMIT,
        );
        match claimed {
            // An earlier agent of this boot led: go on in its place.
            Err(StoreError::Held { source, .. })
                if matches!(*source, storage_core::lease::Held::ByUs { .. }) =>
            {
                return HeldLease::adopt(&host.keeper, files.clone(), None, STORAGE_LIMIT)
                    .map(Some);
            }
            Err(StoreError::Held { .. }) if Instant::now() < give_up => thread::sleep(CLAIM_PAUSE),
            Err(error @ (StoreError::Held { .. } | StoreError::Refused { .. })) => {
                info!(%error, "the lead is another's");
                return Ok(None);
            }
            other => return other.map(Some),
        }
    }
}

/// Let go of the lead. An agent that was restarted leads without having claimed the lease, which
/// still names this host.
pub(crate) fn release(host: &Host, held: Option<HeldLease>) {
    let held = match held {
        Some(held) => Ok(held),
        None => HeldLease::adopt(&host.keeper, host.store.leader_lease(), None, STORAGE_LIMIT),
    };
    if let Err(error) = held.and_then(|held| held.release(STORAGE_LIMIT)) {
        warn!(%error, "cannot release the lead");
    }
}
