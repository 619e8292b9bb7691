//! What is answered: what came of an act, or why it is refused.

use std::io::ErrorKind;

use axum::Json;
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use shared_storage::StoreError;

use crate::http::client::{CallError, Refusal};

/// A refusal on its way out.
#[derive(Debug)]
pub struct Refused(pub StatusCode, pub String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(Refusal { error: self.1 })).into_response()
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        let status = match &error {
            StoreError::Missing(_) => StatusCode::NOT_FOUND,
            StoreError::Exists(_) | StoreError::Changed { .. } => StatusCode::CONFLICT,
            StoreError::Name { .. } => StatusCode::BAD_REQUEST,
            full if matches!(
                full.io_kind(),
                Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
            ) =>
            {
                StatusCode::INSUFFICIENT_STORAGE
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

impl From<CallError> for Refused {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused { status, message } => Self(status, message),
            other => Self(StatusCode::BAD_GATEWAY, other.to_string()),
        }
    }
}

/// What came of an act, in words.
#[derive(Debug, Serialize, Deserialize)]
pub struct Said {
    pub(super) said: String,
}

pub(crate) type Answer = Result<Json<Said>, Refused>;

/// The answer to an act.
pub(crate) fn said(said: String) -> Json<Said> {
    Json(Said { said })
}

/// Nothing is known of this guest, or the datastore does not say.
pub(super) fn no_guest(name: &str, error: StoreError) -> Refused {
    match error {
        StoreError::Missing(_) => Refused(
            StatusCode::NOT_FOUND,
            format!("there is no guest {name}; `godwit guests` lists them"),
        ),
        other => other.into(),
    }
}
