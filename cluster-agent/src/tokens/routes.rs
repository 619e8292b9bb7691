//! The routes about tokens and about whom operators are to trust. Tokens are made and revoked
//! by root on a host only: a token that could make tokens could not be revoked.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Path, State};
use axum::routing::{delete, get};
use axum::{Json, Router};
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use shared_storage::trust::Identity;
use storage_core::name::check_name;

use super::{Token, Tokens, hash, secret};
use crate::api::answer::{Answer, Refused, said};
use crate::api::shared::Api;
use crate::http::wish::Wish;

/// Where tokens are steered; closed to tokens themselves.
pub const TOKENS_PATH: &str = "/v1/tokens";

/// `POST /v1/tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// What it is called.
    pub name: String,
    /// It may see everything and change nothing.
    #[serde(default)]
    pub read_only: bool,
}

/// A token that was just made; nobody can be told it again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewToken {
    /// What it is called.
    pub name: String,
    /// The token.
    pub token: String,
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// What it is called.
    pub name: String,
    /// It may see everything and change nothing.
    pub read_only: bool,
    /// When it was made, in seconds since 1970.
    pub created_unix_s: u64,
}

/// What shows that an agent belongs to this cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuthorityView {
    /// The certificate of the cluster's authority.
    pub certificate_pem: String,
}

/// What people and scripts may ask.
pub fn public() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/ca", get(authority))
        .route(TOKENS_PATH, get(list).post(create))
        .route("/v1/tokens/{token}", delete(revoke))
}

async fn authority(State(api): State<Arc<Api>>) -> Result<Json<AuthorityView>, Refused> {
    let dir = api.host.identity.clone();
    let identity = api
        .on_store(move |_| {
            Identity::read(&dir)
                .map_err(|error| Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
        })
        .await?;
    Ok(Json(AuthorityView {
        certificate_pem: identity.authority_pem,
    }))
}

async fn list(State(api): State<Arc<Api>>) -> Result<Json<Vec<TokenView>>, Refused> {
    let tokens = api.on_store(|store| Ok(Tokens::read(store)?.spec)).await?;
    let view = |(name, token): (String, Token)| TokenView {
        name,
        read_only: token.read_only,
        created_unix_s: token.created_unix_s,
    };
    Ok(Json(tokens.tokens.into_iter().map(view).collect()))
}

async fn create(
    State(api): State<Arc<Api>>,
    Wish(wish): Wish<CreateToken>,
) -> Result<Json<NewToken>, Refused> {
    let CreateToken { name, read_only } = wish;
    check_name(&name)
        .map_err(|error| Refused(StatusCode::BAD_REQUEST, format!("token {name}: {error}")))?;
    let secret = secret();
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let token = Token {
        sha256: hash(&secret),
        read_only,
        created_unix_s: since.map_or(0, |since| since.as_secs()),
    };
    let new = NewToken {
        name: name.clone(),
        token: secret,
    };
    api.on_store(move |store| {
        Tokens::change(store, |tokens| {
            let added = tokens.add(&name, token.clone());
            added.map_err(|why| Refused(StatusCode::CONFLICT, why))
        })
    })
    .await?;
    api.nudge.nudge();
    Ok(Json(new))
}

async fn revoke(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Answer {
    let words = format!("token {name} opens nothing any more");
    api.on_store(move |store| {
        Tokens::change(store, |tokens| match tokens.tokens.remove(&name) {
            Some(_) => Ok(()),
            None => Err(Refused(
                StatusCode::NOT_FOUND,
                format!("there is no token {name}; `godwit token list` shows them"),
            )),
        })
    })
    .await?;
    api.nudge.nudge();
    Ok(said(words))
}
