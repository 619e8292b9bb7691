//! Who may ask what over the network: members everything, operators with a token what people
//! and scripts may ask, nobody else anything. Nothing is read of a request before that is clear.

use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::header::{AUTHORIZATION, UPGRADE, WWW_AUTHENTICATE};
use hyper::{HeaderMap, Method, StatusCode};
use tracing::info;

use super::connection::Peer;
use crate::api::answer::Refused;
use crate::api::shared::Api;
use crate::tokens::Tokens;
use crate::tokens::routes::TOKENS_PATH;

/// Longest token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 256;

/// Lets a request in, or says why not.
pub async fn gate(
    State(api): State<Arc<Api>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    if peer.is_member() {
        return next.run(request).await;
    }
    let tokens = api.picture.borrow().tokens.clone();
    let (method, path) = (request.method(), request.uri().path());
    match admit(&tokens, method, path, request.headers()) {
        Ok(token) => {
            peer.trust();
            if changes(method, request.headers()) {
                info!(token, peer = %peer.address(), %method, path, "an operator acts");
            }
            next.run(request).await
        }
        Err(refused) => refuse(refused),
    }
}

/// A connection that is upgraded carries whatever is typed into a guest's console.
fn changes(method: &Method, headers: &HeaderMap) -> bool {
    !matches!(*method, Method::GET | Method::HEAD) || headers.contains_key(UPGRADE)
}

/// The name of the token that lets this request in.
fn admit<'a>(
    tokens: &'a Tokens,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Result<&'a str, Refused> {
    let no_token = || {
        let why = "this needs a token; make one on any host: godwit token create NAME";
        Refused(StatusCode::UNAUTHORIZED, why.to_owned())
    };
    let shown = bearer(headers).ok_or_else(no_token)?;
    let (name, token) = tokens.find(shown).ok_or_else(|| {
        let why = "this token is none of this cluster's, or was revoked; \
                   make one on any host: godwit token create NAME";
        Refused(StatusCode::UNAUTHORIZED, why.to_owned())
    })?;
    let forbidden = |why: &str| Err(Refused(StatusCode::FORBIDDEN, why.to_owned()));
    if path.starts_with("/member/") {
        return forbidden("only members of the cluster may ask this, and no token makes a member");
    }
    if path.starts_with(TOKENS_PATH) {
        return forbidden("tokens are made, listed and revoked on a host: godwit token --help");
    }
    if token.read_only && changes(method, headers) {
        return forbidden("this token may see everything and change nothing");
    }
    Ok(name)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let fits = scheme.eq_ignore_ascii_case("bearer") && token.len() <= TOKEN_BYTES_MAX;
    fits.then(|| token.trim())
}

fn refuse(refused: Refused) -> Response {
    let unauthorized = refused.0 == StatusCode::UNAUTHORIZED;
    let mut response = refused.into_response();
    if unauthorized {
        let scheme = hyper::header::HeaderValue::from_static("Bearer realm=\"godwit\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
    }
    response
}
