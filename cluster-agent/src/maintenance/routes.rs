//! The routes about maintenance. What the operator wants lies in `policy.toml`, so that a new
//! leader goes on where the old one ended.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use cluster_core::brain::Brain;
use cluster_core::evacuate::{Turn, evacuate, objection, rolling};
use cluster_core::model::HostId;
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use crate::api::answer::{Answer, Refused, Said, said};
use crate::api::shared::Api;
use crate::http::wish::Wish;
use crate::policy::Policy;

/// `POST /v1/hosts/{host}/maintenance`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Maintain {
    /// Take it out of service, or back.
    pub enter: bool,
    /// Even if afterwards the failures that admission control provides for may not be survived.
    #[serde(default)]
    pub force: bool,
}

/// What people and scripts may ask.
pub fn public() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/hosts/{host}/maintenance", post(maintain))
        .route("/v1/cluster/upgrade-plan", get(upgrade_plan))
}

/// What members may ask of the leader besides.
pub fn member() -> Router<Arc<Api>> {
    Router::new()
        .route("/member/hosts/{host}/maintenance", post(maintain_here))
        .route("/member/cluster/upgrade-plan", get(upgrade_plan_here))
}

async fn maintain(
    State(api): State<Arc<Api>>,
    Path(host): Path<HostId>,
    Wish(wish): Wish<Maintain>,
) -> Answer {
    if let Some(leader) = api.other_leader() {
        let path = format!("/member/hosts/{host}/maintenance");
        let answer: Said = leader.call(Method::POST, &path, Some(&wish)).await?;
        return Ok(Json(answer));
    }
    maintain_here(State(api), Path(host), Wish(wish)).await
}

/// Only the leader knows whether the cluster can do without.
async fn maintain_here(
    State(api): State<Arc<Api>>,
    Path(host): Path<HostId>,
    Wish(wish): Wish<Maintain>,
) -> Answer {
    let name = host.clone();
    let words = api
        .ask_leading(move |brain, _now_us| verdict(brain, &name, wish))
        .await?
        .map_err(|why| Refused(StatusCode::CONFLICT, why))?;
    api.on_store(move |store| {
        Policy::change(store, |policy| {
            if wish.enter {
                policy.maintenance.insert(host.clone());
            } else {
                policy.maintenance.remove(&host);
            }
            Ok::<_, Refused>(())
        })
    })
    .await?;
    api.nudge.nudge();
    Ok(said(words))
}

pub(crate) fn verdict(brain: &Brain, host: &HostId, wish: Maintain) -> Result<String, String> {
    let cluster = brain
        .cluster()
        .ok_or("this host has only begun to lead; ask again")?;
    if !cluster.hosts.contains_key(host) {
        return Err(format!(
            "there is no host {host}; `godwit hosts` lists them"
        ));
    }
    if !wish.enter {
        return Ok(format!("{host} is back in service"));
    }
    let balance = brain.settings().balance();
    let plan = evacuate(cluster, host, &balance, wish.force);
    let plan = plan.map_err(|refused| {
        let remedies = refused.remedies.join("; ");
        format!("{host} is needed: {}; {remedies}", refused.because)
    })?;
    let mut words = match plan.moves().count() {
        0 => format!("{host} takes no guests any more"),
        1 => format!("{host} takes no guests any more; 1 has to move"),
        many => format!("{host} takes no guests any more; {many} have to move"),
    };
    if let Some(warning) = objection(cluster, host, &balance) {
        words = format!("{words}\nbe warned: {}", warning.because);
    }
    for one in &plan.unresolved {
        words = format!("{words}\nbut {}: {}", one.what, one.because);
    }
    Ok(words)
}

async fn upgrade_plan(State(api): State<Arc<Api>>) -> Result<Json<Vec<Turn>>, Refused> {
    match api.other_leader() {
        Some(leader) => {
            let path = "/member/cluster/upgrade-plan";
            Ok(Json(leader.call(Method::GET, path, None::<&()>).await?))
        }
        None => upgrade_plan_here(State(api)).await,
    }
}

/// Host by host, the leader last: so the lead moves only once.
async fn upgrade_plan_here(State(api): State<Arc<Api>>) -> Result<Json<Vec<Turn>>, Refused> {
    let me = api.me.clone();
    let turns = api
        .ask_leading(move |brain, _now_us| {
            let cluster = brain.cluster()?;
            let mut order: Vec<HostId> = cluster.hosts.keys().cloned().collect();
            order.sort_by_key(|host| *host == me);
            Some(rolling(cluster, &order, &brain.settings().balance()))
        })
        .await?;
    Ok(Json(turns.unwrap_or_default()))
}
