//! The routes about migrations.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::{Method, StatusCode};
use tokio::sync::oneshot;
use vmm_core::migration::Forecast;

use super::rehearsal;
use super::view::{Berth, MigrateGuest, MigrationView, OnHost, Ordered, Rehearsed};
use crate::api::answer::Refused;
use crate::api::shared::Api;
use crate::driver::Input;
use crate::http::wish::Wish;

/// What people and scripts may ask.
pub fn public() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/guests/{guest}/migrate", post(migrate))
        .route("/v1/guests/{guest}/migration", get(progress))
        .route("/v1/guests/{guest}/rehearsal", post(rehearse))
}

/// What members may ask of each other besides.
pub fn member() -> Router<Arc<Api>> {
    Router::new()
        .route("/member/guests/{guest}/arrival", post(arrive))
        .route("/member/guests/{guest}/rehearsal/{to}", post(rehearse_here))
}

fn ending() -> Refused {
    let why = "this agent is ending; ask another".to_owned();
    Refused(StatusCode::SERVICE_UNAVAILABLE, why)
}

/// Ask the driver for something that it may refuse.
async fn ask<T>(
    api: &Api,
    question: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Input,
) -> Result<T, Refused> {
    let (reply, answer) = oneshot::channel();
    let asked = api.driver.send(question(reply)).await;
    asked.map_err(|_| ending())?;
    let answer = answer.await.map_err(|_| ending())?;
    answer.map_err(|why| Refused(StatusCode::CONFLICT, why))
}

/// The leader orders it; how it goes is for the source to tell.
async fn migrate(
    State(api): State<Arc<Api>>,
    Path(guest): Path<String>,
    Wish(wish): Wish<MigrateGuest>,
) -> Result<Json<Ordered>, Refused> {
    let picture = api.picture.borrow().clone();
    match picture.leader {
        Some((_, address)) if !picture.leads => {
            let leader = api.member(address);
            let path = format!("/v1/guests/{guest}/migrate");
            Ok(Json(leader.call(Method::POST, &path, Some(&wish)).await?))
        }
        _ => ask(&api, |reply| Input::Migrate {
            guest,
            to: wish.to,
            reply,
        })
        .await
        .map(Json),
    }
}

async fn progress(
    State(api): State<Arc<Api>>,
    Path(guest): Path<String>,
    Query(host): Query<OnHost>,
) -> Result<Json<Option<MigrationView>>, Refused> {
    if host.on == api.me {
        let view = api.picture.borrow().migrations.get(&guest).cloned();
        return Ok(Json(view));
    }
    let address = address_of(&api, &host.on)?;
    let path = format!("/v1/guests/{guest}/migration?on={}", host.on);
    let source = api.member(address);
    Ok(Json(source.call(Method::GET, &path, None::<&()>).await?))
}

/// A dry run: the leader chooses, the guest's host tries.
async fn rehearse(
    State(api): State<Arc<Api>>,
    Path(guest): Path<String>,
    Wish(wish): Wish<MigrateGuest>,
) -> Result<Json<Rehearsed>, Refused> {
    if let Some(leader) = api.other_leader() {
        let path = format!("/v1/guests/{guest}/rehearsal");
        return Ok(Json(leader.call(Method::POST, &path, Some(&wish)).await?));
    }
    let chosen = api
        .ask_leading(move |brain, _now_us| brain.would_migrate(&guest, wish.to.as_ref()))
        .await?;
    let chosen = chosen.unwrap_or_else(|| Err("no host leads the cluster; ask again".to_owned()));
    let one = chosen.map_err(|why| Refused(StatusCode::CONFLICT, why))?;
    let forecast = if one.from == api.me {
        rehearse_to(&api, &one.guest, &one.to).await?
    } else {
        let path = format!("/member/guests/{}/rehearsal/{}", one.guest, one.to);
        let source = api.member(address_of(&api, &one.from)?);
        source.call(Method::POST, &path, None::<&()>).await?
    };
    Ok(Json(Rehearsed {
        from: one.from,
        to: one.to,
        forecast,
    }))
}

async fn rehearse_here(
    State(api): State<Arc<Api>>,
    Path((guest, to)): Path<(String, String)>,
) -> Result<Json<Forecast>, Refused> {
    rehearse_to(&api, &guest, &to).await.map(Json)
}

async fn rehearse_to(api: &Api, guest: &str, to: &str) -> Result<Forecast, Refused> {
    let address = address_of(api, to)?;
    let forecast = rehearsal::rehearse(&api.host, guest, address).await;
    forecast.map_err(|why| Refused(StatusCode::CONFLICT, why))
}

fn address_of(api: &Api, host: &str) -> Result<SocketAddr, Refused> {
    let address = api.picture.borrow().members.get(host).copied();
    address.ok_or_else(|| {
        let why = format!("there is no host {host}; `godwit hosts` lists them");
        Refused(StatusCode::NOT_FOUND, why)
    })
}

/// Another member wants to send us a guest.
async fn arrive(
    State(api): State<Arc<Api>>,
    Path(guest): Path<String>,
) -> Result<Json<Berth>, Refused> {
    ask(&api, |reply| Input::Arrive { guest, reply })
        .await
        .map(Json)
}
