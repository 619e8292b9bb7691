//! What is asked of a running guest's VMM: passed on to its host, and there to the VMM.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::post;
use hyper::Method;

use super::answer::{Answer, Refused, Said, said};
use super::shared::Api;
use crate::http::client::{Client, Endpoint};

/// A VMM answers within this.
const CONTROL_LIMIT: Duration = Duration::from_secs(5);
/// What is listed rests on reports, which come a little late: whoever looks after having paused a
/// guest shall see it paused, and waits for that no longer than this.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

/// What people and scripts may ask.
pub fn public() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/guests/{guest}/pause", post(pause))
        .route("/v1/guests/{guest}/resume", post(resume))
        .route("/v1/guests/{guest}/reboot", post(reboot))
}

async fn pause(State(api): State<Arc<Api>>, Path(guest): Path<String>) -> Answer {
    pass_on(&api, &guest, "pause", "/v1/pause").await?;
    await_seen(&api, &guest, "paused").await;
    Ok(said(format!(
        "{guest} stands still; go on with: godwit resume {guest}"
    )))
}

async fn resume(State(api): State<Arc<Api>>, Path(guest): Path<String>) -> Answer {
    pass_on(&api, &guest, "resume", "/v1/resume").await?;
    await_seen(&api, &guest, "running").await;
    Ok(said(format!("{guest} runs")))
}

async fn reboot(State(api): State<Arc<Api>>, Path(guest): Path<String>) -> Answer {
    pass_on(&api, &guest, "reboot", "/v1/reset").await?;
    Ok(said(format!("{guest} is reset and boots on the same host")))
}

async fn await_seen(api: &Api, guest: &str, state: &str) {
    let seen = api.wait_for(guest, |view| (view.state == state).then(String::new));
    // It is done in any case.
    let _ = tokio::time::timeout(SEEN_WITHIN, seen).await;
}

async fn pass_on(api: &Api, guest: &str, act: &str, path: &str) -> Result<(), Refused> {
    let host = api.host_of(guest).await?;
    if host == api.me {
        let socket = Endpoint::Unix(api.host.api_socket(guest));
        let vmm = Client::new(socket, CONTROL_LIMIT);
        return Ok(vmm.call(Method::PUT, path, None::<&()>).await?);
    }
    let there = format!("/v1/guests/{guest}/{act}");
    let answer: Result<Said, _> = api
        .member_of(&host)?
        .call(Method::POST, &there, None::<&()>)
        .await;
    Ok(answer.map(drop)?)
}
