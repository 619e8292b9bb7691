//! Gives every refusal the one form that [`Refusal`] is, the framework's own too.

use axum::Json;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE};

use super::client::Refusal;

/// Longest text of the framework's that is passed on, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

/// Passes good answers and our own refusals on as they are.
pub async fn in_one_form(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let status = response.status();
    let kind = response.headers().get(CONTENT_TYPE);
    let ours = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if ours || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let text = to_bytes(body, TEXT_BYTES_MAX).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let error = if text.is_empty() {
        let why = status.canonical_reason().unwrap_or("refused");
        format!("{why}; GET /v1/openapi.json tells what can be asked")
    } else {
        text.into_owned()
    };
    // What else the framework says (which methods are allowed) stays.
    let mut answer = (status, Json(Refusal { error })).into_response();
    parts.headers.remove(CONTENT_TYPE);
    parts.headers.remove(CONTENT_LENGTH);
    answer.headers_mut().extend(parts.headers);
    answer
}
