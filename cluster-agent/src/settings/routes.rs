//! The routes about the cluster's settings.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use hyper::StatusCode;

use super::{ChangeConfig, ConfigView};
use crate::api::answer::{Answer, Refused, said};
use crate::api::shared::Api;
use crate::http::wish::Wish;
use crate::policy::Policy;

/// What people and scripts may ask.
pub fn public() -> Router<Arc<Api>> {
    Router::new().route("/v1/config", get(show).patch(change))
}

async fn show(State(api): State<Arc<Api>>) -> Result<Json<ConfigView>, Refused> {
    let read = |store: &shared_storage::Datastore| {
        Ok(ConfigView {
            settings: Policy::read(store)?.spec.settings,
            lease: *store.timing(),
        })
    };
    api.on_store(read).await.map(Json)
}

async fn change(State(api): State<Arc<Api>>, Wish(change): Wish<ChangeConfig>) -> Answer {
    let bad = |why| Refused(StatusCode::BAD_REQUEST, why);
    api.on_store(move |store| {
        Policy::change(store, |policy| {
            change.apply(&mut policy.settings).map_err(bad)
        })
    })
    .await?;
    api.nudge.nudge();
    Ok(said("set; every host goes by it within seconds".to_owned()))
}
