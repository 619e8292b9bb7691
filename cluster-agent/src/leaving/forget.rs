//! `godwit host forget`: a dead host is taken off the list, and what it still held is free.
//!
//! Nobody can watch the heartbeat of a host that is not listed any more, so its leases could
//! never be taken over afterwards: they are freed first, once the heartbeat has stood still for
//! as long as any takeover has to wait.

use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use hyper::StatusCode;
use shared_storage::lease::LeaseFiles;
use shared_storage::{Datastore, StoreError};

use crate::api::answer::{Answer, Refused, said};
use crate::api::shared::Api;
use crate::guests::Host;
use crate::policy::Policy;

/// A dead host's heartbeat has stood still for long enough within this.
const SILENCE_LIMIT: Duration = Duration::from_secs(15);
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// `DELETE /v1/hosts/{host}`: take a dead host off the list.
pub(super) async fn forget(State(api): State<Arc<Api>>, Path(host): Path<String>) -> Answer {
    let view = api.view().await?;
    let Some(found) = view.hosts.iter().find(|found| found.name == host) else {
        let why = format!("there is no host {host}; `godwit hosts` lists them");
        return Err(Refused(StatusCode::NOT_FOUND, why));
    };
    if found.health != "dead" {
        let why = format!(
            "{host} is {}; only a dead host can be forgotten. One that lives leaves with: godwit \
             host leave {host}",
            found.health
        );
        return Err(Refused(StatusCode::CONFLICT, why));
    }
    let (name, us) = (host.clone(), api.host.clone());
    let freed = api
        .on_store(move |store| {
            await_silence(&us, &name)?;
            Ok(take_off(store, &name)?)
        })
        .await?;
    api.nudge.nudge();
    let held = match freed {
        0 => String::new(),
        1 => "; what it held, 1 lease, is free".to_owned(),
        many => format!("; what it held, {many} leases, is free"),
    };
    Ok(said(format!(
        "{host} is off the list{held}; it joins again when its agent starts"
    )))
}

fn await_silence(us: &Host, name: &str) -> Result<(), Refused> {
    let watch_us = us.store.timing().watch_us(false);
    let give_up = Instant::now() + SILENCE_LIMIT;
    loop {
        let watcher = us.watcher.read().unwrap_or_else(PoisonError::into_inner);
        let silent_us = watcher.sighting(name).map_or(0, |seen| seen.silent_us);
        drop(watcher);
        if silent_us >= watch_us {
            return Ok(());
        }
        if Instant::now() > give_up {
            let why = format!(
                "the heartbeat of {name} does not stand still as seen from here; look again: \
                 godwit hosts"
            );
            return Err(Refused(StatusCode::CONFLICT, why));
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Returns how many leases it held.
fn take_off(store: &Datastore, name: &str) -> Result<u64, StoreError> {
    let mut leases = vec![store.leader_lease()];
    for guest in store.guests()? {
        match store.guest(&guest) {
            Ok(dir) => leases.push(dir.lease()),
            // Just deleted.
            Err(StoreError::Missing(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let mut freed = 0;
    for lease in leases {
        freed += u64::from(free(&lease, name)?);
    }
    store.remove_host(name)?;
    Policy::change(store, |policy| {
        policy.leaving.remove(name);
        policy.maintenance.remove(name);
        Ok::<_, StoreError>(())
    })?;
    Ok(freed)
}

fn free(lease: &LeaseFiles, host: &str) -> Result<bool, StoreError> {
    let last = lease.last()?;
    let holder = last.and_then(|last| last.holder);
    if holder.is_none_or(|holder| holder.host != host) {
        return Ok(false);
    }
    match lease.force_free(&format!("{host} is dead and was forgotten")) {
        // Somebody took it over meanwhile.
        Err(StoreError::Changed { .. }) => Ok(false),
        other => other.map(|_| true),
    }
}
