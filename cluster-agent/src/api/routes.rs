//! All routes: what can be answered here is, what only the leader knows is asked of it, what
//! concerns a running guest is passed on to its host.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::routing::post;
use axum::{Json, Router};
use hyper::StatusCode;

use super::answer::Refused;
use super::shared::Api;
use super::{clone, cluster, edit, lifecycle, power};
use crate::driver::Input;
use crate::http::BODY_BYTES_MAX;
use crate::mail::{Letter, MAIL_PATH};
use crate::{
    admission, console, drs, event_stream, leaving, maintenance, metrics, migration, openapi,
    rules, settings, tokens,
};

/// What people and scripts may ask.
pub fn public(api: Arc<Api>) -> Router {
    public_routes()
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}

/// The same, yet without anything to answer from.
pub(crate) fn public_routes() -> Router<Arc<Api>> {
    Router::new()
        .merge(cluster::public())
        .merge(lifecycle::public())
        .merge(power::public())
        .merge(edit::public())
        .merge(clone::public())
        .merge(drs::routes::public())
        .merge(rules::routes::public())
        .merge(settings::routes::public())
        .merge(migration::routes::public())
        .merge(console::routes::public())
        .merge(maintenance::routes::public())
        .merge(leaving::routes::public())
        .merge(tokens::routes::public())
        .merge(openapi::public())
        .merge(event_stream::public())
        .merge(metrics::routes::public())
}

/// What other members may ask besides.
pub fn member(api: Arc<Api>) -> Router {
    let mail = Router::new()
        .route(MAIL_PATH, post(take_mail))
        .merge(cluster::member())
        .merge(drs::routes::member())
        .merge(migration::routes::member())
        .merge(console::routes::member())
        .merge(maintenance::routes::member())
        .merge(leaving::routes::member())
        .merge(admission::member())
        .with_state(api.clone());
    public(api).merge(mail)
}

async fn take_mail(State(api): State<Arc<Api>>, Json(letter): Json<Letter>) -> StatusCode {
    match api.driver.try_send(Input::Mail(letter)) {
        Ok(()) => StatusCode::NO_CONTENT,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Anything else.
pub async fn unknown() -> Refused {
    Refused(
        StatusCode::NOT_FOUND,
        "there is no such request; GET /v1/openapi.json tells what can be asked".to_owned(),
    )
}
