//! The routes about balancing.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use cluster_core::drs::Order;
use hyper::{Method, StatusCode};

use super::view::{ChangeDrs, ChangeGuestDrs, DrsView, words};
use crate::api::answer::{Answer, Refused, said};
use crate::api::shared::Api;
use crate::http::wish::Wish;
use crate::policy::Policy;

/// What people and scripts may ask.
pub fn public() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/drs", get(show))
        .route("/v1/drs/settings", post(set))
        .route("/v1/drs/apply", post(apply))
        .route("/v1/guests/{guest}/automation", post(set_guest))
}

/// What members may ask of the leader besides.
pub fn member() -> Router<Arc<Api>> {
    Router::new()
        .route("/member/drs", get(show_own))
        .route("/member/drs/apply", post(apply_here))
}

async fn show(State(api): State<Arc<Api>>) -> Result<Json<DrsView>, Refused> {
    match api.other_leader() {
        Some(leader) => Ok(Json(
            leader.call(Method::GET, "/member/drs", None::<&()>).await?,
        )),
        None => show_own(State(api)).await,
    }
}

async fn show_own(State(api): State<Arc<Api>>) -> Result<Json<DrsView>, Refused> {
    let drs = api.picture.borrow().drs.clone();
    drs.map(Json).ok_or_else(|| {
        let why = "no host leads the cluster yet; ask again in a few seconds";
        Refused(StatusCode::SERVICE_UNAVAILABLE, why.to_owned())
    })
}

async fn apply(State(api): State<Arc<Api>>, Json(numbers): Json<Vec<u64>>) -> Answer {
    match api.other_leader() {
        Some(leader) => {
            let path = "/member/drs/apply";
            Ok(Json(leader.call(Method::POST, path, Some(&numbers)).await?))
        }
        None => apply_here(State(api), Json(numbers)).await,
    }
}

async fn apply_here(State(api): State<Arc<Api>>, Json(numbers): Json<Vec<u64>>) -> Answer {
    let order = Order::Apply(numbers);
    let answer = api
        .ask_leading(move |brain, _now_us| brain.order_balancing(order))
        .await?;
    let words = answer.unwrap_or_else(|| Err("no host leads the cluster; ask again".to_owned()));
    words
        .map(said)
        .map_err(|why| Refused(StatusCode::CONFLICT, why))
}

async fn set(State(api): State<Arc<Api>>, Wish(change): Wish<ChangeDrs>) -> Answer {
    let bad = |why| Refused(StatusCode::BAD_REQUEST, why);
    let now = api
        .on_store(move |store| {
            Policy::change(store, |policy| {
                change.apply(&mut policy.settings.drs).map_err(bad)?;
                Ok::<_, Refused>(policy.settings.drs.clone())
            })
        })
        .await?;
    api.nudge.nudge();
    Ok(said(words(&now)))
}

async fn set_guest(
    State(api): State<Arc<Api>>,
    Path(guest): Path<String>,
    Wish(wish): Wish<ChangeGuestDrs>,
) -> Answer {
    let words = match (wish.movable, wish.automation) {
        (false, _) => format!("{guest} is not moved by itself any more"),
        (true, None) => format!("{guest} is treated like the rest of the cluster"),
        (true, Some(level)) => format!("automation of {guest}: {}", level.word()),
    };
    api.change_guest(&guest, move |file| {
        file.movable = wish.movable;
        file.automation = wish.automation;
    })
    .await?;
    Ok(said(words))
}
