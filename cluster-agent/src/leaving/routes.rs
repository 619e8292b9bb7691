//! The route about leaving.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::{delete, post};
use axum::{Json, Router};
use cluster_core::brain::Brain;
use cluster_core::model::{HostId, HostMode};
use hyper::Method;
use serde::{Deserialize, Serialize};

use super::forget::forget;
use crate::api::answer::{Answer, Said};
use crate::api::shared::Api;
use crate::http::wish::Wish;
use crate::maintenance::routes::{Maintain, decide, verdict};
use crate::policy::Policy;

/// `POST /v1/hosts/{host}/leave`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Leave {
    /// It shall stay after all.
    #[serde(default)]
    pub cancel: bool,
    /// Even if afterwards the failures that admission control provides for may not be survived.
    #[serde(default)]
    pub force: bool,
}

/// What people and scripts may ask.
///
/// `POST /v1/hosts/{host}/leave` takes a [`Leave`] and answers in words; the host is off the
/// list once it is empty. `DELETE /v1/hosts/{host}` forgets a dead one.
pub fn public() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/hosts/{host}/leave", post(leave))
        .route("/v1/hosts/{host}", delete(forget))
}

/// What members may ask of the leader besides.
pub fn member() -> Router<Arc<Api>> {
    Router::new().route("/member/hosts/{host}/leave", post(leave_here))
}

async fn leave(
    State(api): State<Arc<Api>>,
    Path(host): Path<HostId>,
    Wish(wish): Wish<Leave>,
) -> Answer {
    if let Some(leader) = api.other_leader() {
        let path = format!("/member/hosts/{host}/leave");
        let answer: Said = leader.call(Method::POST, &path, Some(&wish)).await?;
        return Ok(Json(answer));
    }
    leave_here(State(api), Path(host), Wish(wish)).await
}

/// Only the leader knows whether the cluster can do without.
async fn leave_here(
    State(api): State<Arc<Api>>,
    Path(host): Path<HostId>,
    Wish(wish): Wish<Leave>,
) -> Answer {
    let name = host.clone();
    let judge = move |brain: &Brain, policy: &Policy| may_leave(brain, policy, &name, wish);
    let change = move |policy: &mut Policy| {
        if wish.cancel {
            policy.leaving.remove(&host);
        } else {
            policy.leaving.insert(host.clone());
        }
    };
    decide(api, judge, change).await
}

fn may_leave(brain: &Brain, policy: &Policy, host: &HostId, wish: Leave) -> Result<String, String> {
    if wish.cancel {
        let stays = Maintain {
            enter: false,
            force: false,
        };
        return verdict(brain, policy, host, stays).map(|_| format!("{host} stays in the cluster"));
    }
    let known = brain.cluster().and_then(|cluster| cluster.hosts.get(host));
    if known.is_some_and(|known| known.mode == HostMode::Lost) {
        return Err(format!(
            "{host} does not answer, so it cannot leave by itself; take it off the list: godwit \
             host forget {host}"
        ));
    }
    let goes = Maintain {
        enter: true,
        force: wish.force,
    };
    let words = verdict(brain, policy, host, goes)?;
    Ok(format!(
        "{words}\n{host} leaves the cluster once it is empty"
    ))
}
