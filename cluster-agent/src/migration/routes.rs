//! The routes about migrations.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::{Method, StatusCode};
use tokio::sync::oneshot;

use super::view::{Berth, MigrateGuest, MigrationView, OnHost, Ordered};
use crate::api::routes::{Api, Refused};
use crate::driver::Input;

/// What people and scripts may ask.
pub fn public() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/guests/{guest}/migrate", post(migrate))
        .route("/v1/guests/{guest}/migration", get(progress))
}

/// What members may ask of each other besides.
pub fn member() -> Router<Arc<Api>> {
    Router::new().route("/member/guests/{guest}/arrival", post(arrive))
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
    Json(wish): Json<MigrateGuest>,
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
    let address = api.picture.borrow().members.get(&host.on).copied();
    let Some(address) = address else {
        let why = format!("there is no host {}; `godwit hosts` lists them", host.on);
        return Err(Refused(StatusCode::NOT_FOUND, why));
    };
    let path = format!("/v1/guests/{guest}/migration?on={}", host.on);
    let source = api.member(address);
    Ok(Json(source.call(Method::GET, &path, None::<&()>).await?))
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
