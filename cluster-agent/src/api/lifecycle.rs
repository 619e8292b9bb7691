//! A guest is made, started, stopped and deleted: written into its file, and waited for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Path, Query, State};
use axum::routing::{delete, post};
use axum::{Json, Router};
use cluster_core::model::Desired;
use hyper::StatusCode;
use shared_storage::Datastore;

use super::answer::{Answer, Refused, no_guest, said};
use super::check::check_grace;
use super::shared::Api;
use super::views::{CreateGuest, GuestView, StopGuest};
use super::{create, off};
use crate::admission::{self, Candidate, Where};
use crate::guest_file::GuestFile;
use crate::http::wish::Wish;

/// How long a start or stop is waited for before the caller is told to look later.
const ACT_LIMIT: Duration = Duration::from_mins(4);
const POLL: Duration = Duration::from_millis(200);
/// A guest that failed to start everywhere it could, and that nobody tries to start for so long,
/// is not waited for any longer.
const STUCK_AFTER: Duration = Duration::from_secs(3);

/// What people and scripts may ask.
pub fn public() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/guests", post(create_guest))
        .route("/v1/guests/{guest}", delete(delete_guest))
        .route("/v1/guests/{guest}/start", post(start))
        .route("/v1/guests/{guest}/stop", post(stop))
}

impl Api {
    /// Wait until the guest is as `done` says, or say how it stands.
    pub(super) async fn wait_for(
        &self,
        guest: &str,
        done: impl Fn(&GuestView) -> Option<String>,
    ) -> Answer {
        let give_up = Instant::now() + ACT_LIMIT;
        let mut last = String::from("nothing is known of it yet");
        let mut stuck_since = None;
        while Instant::now() < give_up {
            if let Ok(view) = self.view().await
                && let Some(found) = view.guests.iter().find(|g| g.name == guest)
            {
                if let Some(words) = done(found) {
                    return Ok(said(words));
                }
                let is_stuck = found.failed_starts > 0 && found.host.is_none();
                match &found.reason {
                    Some(why) if is_stuck => {
                        let since = stuck_since.get_or_insert_with(Instant::now);
                        if since.elapsed() >= STUCK_AFTER {
                            return Err(Refused(StatusCode::CONFLICT, is_stuck_words(guest, why)));
                        }
                    }
                    _ => stuck_since = None,
                }
                last = match &found.reason {
                    Some(reason) => format!("{}: {reason}", found.state),
                    None => found.state.clone(),
                };
            }
            tokio::time::sleep(POLL).await;
        }
        let limit = ACT_LIMIT.as_secs();
        let why = format!("{guest} is not there after {limit} s ({last}); see: godwit events");
        Err(Refused(StatusCode::GATEWAY_TIMEOUT, why))
    }
}

fn is_stuck_words(guest: &str, why: &str) -> String {
    format!("{guest} is to run and does not: {why}; to have it off: godwit stop {guest}")
}

async fn create_guest(State(api): State<Arc<Api>>, Wish(wish): Wish<CreateGuest>) -> Answer {
    let (name, wanted) = (wish.name.clone(), wish.start);
    api.on_store(move |store| create::create(store, &wish))
        .await?;
    api.nudge.nudge();
    if !wanted {
        return Ok(said(format!(
            "{name} is made; start it with: godwit start {name}"
        )));
    }
    start_guest(&api, &name, Where::default())
        .await
        .map_err(|Refused(status, why)| {
            Refused(status, format!("{name} is made, but not started: {why}"))
        })
}

fn running(guest: &GuestView) -> Option<String> {
    let host = guest.host.as_ref().filter(|_| guest.state == "running")?;
    Some(format!("{} runs on {host}", guest.name))
}

async fn start(
    State(api): State<Arc<Api>>,
    Path(guest): Path<String>,
    Query(place): Query<Where>,
) -> Answer {
    start_guest(&api, &guest, place).await
}

async fn start_guest(api: &Arc<Api>, guest: &str, place: Where) -> Answer {
    let name = guest.to_owned();
    let read = move |store: &Datastore| {
        let dir = store.guest(&name).map_err(|error| no_guest(&name, error))?;
        Ok(dir.spec::<GuestFile>()?.spec)
    };
    let file = api.on_store(read).await?;
    let warning = match file.desired {
        // It has been admitted, and may be waiting for room.
        Desired::Running => match place.on {
            None => {
                admission::try_again(api, guest).await?;
                None
            }
            Some(host) => {
                let why = format!(
                    "{guest} runs or is about to; to move it: godwit migrate {guest} {host}"
                );
                return Err(Refused(StatusCode::CONFLICT, why));
            }
        },
        Desired::Stopped => {
            let candidate = Candidate {
                guest: file.model(),
                place: Some(place),
            };
            admission::ask(api, guest, candidate).await?
        }
    };
    let wanted = |file: &mut GuestFile| {
        file.desired = Desired::Running;
        file.stop_within_s = None;
    };
    api.change_guest(guest, wanted).await?;
    let Json(mut started) = api.wait_for(guest, running).await?;
    if let Some(warning) = warning {
        started.said = format!("{}\nwarning: {warning}", started.said);
    }
    Ok(Json(started))
}

async fn stop(
    State(api): State<Arc<Api>>,
    Path(guest): Path<String>,
    Wish(how): Wish<StopGuest>,
) -> Answer {
    check_grace(how.grace_s)?;
    let change = move |file: &mut GuestFile| {
        file.desired = Desired::Stopped;
        file.stop_within_s = how.grace_s;
    };
    api.change_guest(&guest, change).await?;
    let stopped = |guest: &GuestView| {
        guest
            .host
            .is_none()
            .then(|| format!("{} is off", guest.name))
    };
    api.wait_for(&guest, stopped).await
}

async fn delete_guest(State(api): State<Arc<Api>>, Path(guest): Path<String>) -> Answer {
    let (name, host) = (guest.clone(), api.host.clone());
    api.on_store(move |store| {
        let dir = store.guest(&name).map_err(|error| no_guest(&name, error))?;
        // Held until the directory is gone, and with it the lease.
        let _held = off::hold(&host, &dir, "")?;
        Ok(store.remove_guest(&name)?)
    })
    .await?;
    api.nudge.nudge();
    Ok(said(format!("{guest} and its disks are gone")))
}
