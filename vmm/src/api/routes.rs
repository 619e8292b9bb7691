//! Which request does what.

use std::sync::Arc;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{Request, Response, StatusCode};
use serde::Serialize;
use vmm_core::control::{Happening, Refusal};
use vmm_core::migration::Migrate;

use super::{Body, document};
use crate::error::one_line;
use crate::events::event;
use crate::guest::{Guest, GuestError, Hold};
use crate::migration::departure::Departures;
use crate::notice::Notice;

/// Longest body of a request.
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// All there is; the OpenAPI document lists the same.
pub const ROUTES: [(&str, &str); 12] = [
    ("GET", "/v1/info"),
    ("GET", "/v1/counters"),
    ("GET", "/v1/events"),
    ("GET", "/v1/openapi.json"),
    ("PUT", "/v1/pause"),
    ("PUT", "/v1/resume"),
    ("PUT", "/v1/power-button"),
    ("PUT", "/v1/power-off"),
    ("PUT", "/v1/reset"),
    ("GET", "/v1/migration"),
    ("PUT", "/v1/migration"),
    ("DELETE", "/v1/migration"),
];

/// Answer one request.
pub async fn answer(request: Request<Incoming>, guest: Arc<Guest>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let path = path.as_str();
    match (request.method().as_str(), path) {
        ("GET", "/v1/info") => show(guest.info()),
        ("GET", "/v1/counters") => show(guest.counters()),
        ("GET", "/v1/events") => {
            // Listen first: a change after the look is heard, at worst twice.
            let events = guest.events().listen();
            match guest.state() {
                Some(state) => {
                    let now = event(Happening::State(state));
                    respond(
                        StatusCode::OK,
                        "application/x-ndjson",
                        Body::events(now, events),
                    )
                }
                None => refuse_error(&GuestError::Gone),
            }
        }
        ("GET", "/v1/openapi.json") => {
            respond(StatusCode::OK, "application/json", Body::whole(document()))
        }
        ("PUT", "/v1/pause") => act(guest, |guest| guest.hold(Hold::Operator)).await,
        ("PUT", "/v1/resume") => act(guest, |guest| guest.unhold(Hold::Operator).map(drop)).await,
        ("PUT", "/v1/power-button") => act(guest, Guest::press_power_button).await,
        ("PUT", "/v1/power-off") => {
            act(guest, |guest| {
                guest.ask("switch the guest off", Notice::Off)
            })
            .await
        }
        ("PUT", "/v1/reset") => {
            act(guest, |guest| guest.ask("reset the guest", Notice::Reset)).await
        }
        ("GET", "/v1/migration") => show(Ok(guest.departures().latest().progress())),
        ("PUT", "/v1/migration") => migrate(request, guest).await,
        ("DELETE", "/v1/migration") => {
            guest.departures().latest().cancel();
            done_response()
        }
        _ if ROUTES.iter().any(|(_, known)| *known == path) => {
            let why = format!("{path} does not take {}", request.method());
            refuse(StatusCode::METHOD_NOT_ALLOWED, &why)
        }
        _ => refuse(
            StatusCode::NOT_FOUND,
            &format!("there is no {path}; GET /v1/openapi.json tells what there is"),
        ),
    }
}

/// Do what may take a while without keeping other requests waiting.
async fn act(
    guest: Arc<Guest>,
    act: impl FnOnce(&Guest) -> Result<(), GuestError> + Send + 'static,
) -> Response<Body> {
    match tokio::task::spawn_blocking(move || act(&guest)).await {
        Ok(done) => done.map_or_else(|error| refuse_error(&error), |()| done_response()),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// Start a migration; its progress is for `GET` to tell.
async fn migrate(request: Request<Incoming>, guest: Arc<Guest>) -> Response<Body> {
    let body = Limited::new(request.into_body(), REQUEST_BYTES_MAX)
        .collect()
        .await;
    let wish: Migrate = match body.map(|body| serde_json::from_slice(&body.to_bytes())) {
        Ok(Ok(wish)) => wish,
        Ok(Err(error)) => {
            let why = format!("this is no request to migrate: {error}");
            return refuse(StatusCode::BAD_REQUEST, &why);
        }
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match Departures::begin(&guest, wish) {
        Ok(()) => done_response(),
        Err(error) => refuse(StatusCode::CONFLICT, &one_line(&error)),
    }
}

fn show<T: Serialize>(what: Result<T, GuestError>) -> Response<Body> {
    let what = match what {
        Ok(what) => what,
        Err(error) => return refuse_error(&error),
    };
    match serde_json::to_vec(&what) {
        Ok(json) => respond(StatusCode::OK, "application/json", Body::whole(json)),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn done_response() -> Response<Body> {
    let mut response = Response::new(Body::Whole(None));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

fn refuse_error(error: &GuestError) -> Response<Body> {
    let status = match error {
        GuestError::Gone => StatusCode::GONE,
        GuestError::NotRunning(_)
        | GuestError::NotPaused(_)
        | GuestError::NotBuilt(_)
        | GuestError::Leaving(_)
        | GuestError::Ending => StatusCode::CONFLICT,
        GuestError::Machine(_) | GuestError::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    };
    refuse(status, &one_line(error))
}

fn refuse(status: StatusCode, why: &str) -> Response<Body> {
    let refusal = Refusal {
        error: why.to_owned(),
    };
    let json = serde_json::to_vec(&refusal).unwrap_or_default();
    respond(status, "application/json", Body::whole(json))
}

fn respond(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_every_route_and_no_other() {
        let document: serde_json::Value = serde_json::from_str(&document()).unwrap();
        let mut listed = Vec::new();
        for (path, verbs) in document["paths"].as_object().unwrap() {
            for verb in verbs.as_object().unwrap().keys() {
                listed.push((verb.to_uppercase(), path.clone()));
            }
        }
        listed.sort();
        let mut routes: Vec<_> = ROUTES
            .iter()
            .map(|(verb, path)| ((*verb).to_owned(), (*path).to_owned()))
            .collect();
        routes.sort();
        assert_eq!(listed, routes);
    }
}
