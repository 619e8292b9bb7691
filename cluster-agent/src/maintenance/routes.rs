//! The routes about maintenance. What the operator wants lies in `policy.toml`, so that a new
//! leader goes on where the old one ended.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use cluster_core::balance::Balance;
use cluster_core::brain::Brain;
use cluster_core::evacuate::{Turn, evacuate, objection, rolling};
use cluster_core::model::{Cluster, HostId, HostMode};
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

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
    let judge = move |brain: &Brain, policy: &Policy| verdict(brain, policy, &name, wish);
    let change = move |policy: &mut Policy| {
        if wish.enter {
            policy.maintenance.insert(host.clone());
        } else {
            policy.maintenance.remove(&host);
        }
    };
    decide(api, judge, change).await
}

/// Changes the policy as the leader's verdict on it allows. Who was faster meanwhile may have
/// taken what the verdict counts on, so it is given anew for the policy that is changed in the end.
pub(crate) async fn decide(
    api: Arc<Api>,
    judge: impl Fn(&Brain, &Policy) -> Result<String, String> + Clone + Send + 'static,
    change: impl Fn(&mut Policy) + Send + 'static,
) -> Answer {
    let (leader, runtime) = (api.clone(), Handle::current());
    let words = api
        .on_store(move |store| {
            Policy::change(store, |policy| {
                let (judge, seen) = (judge.clone(), policy.clone());
                let asked = leader.ask_leading(move |brain, _now_us| judge(brain, &seen));
                let words = runtime.block_on(asked)?;
                let words = words.map_err(|why| Refused(StatusCode::CONFLICT, why))?;
                change(policy);
                Ok::<_, Refused>(words)
            })
        })
        .await?;
    api.nudge.nudge();
    Ok(said(words))
}

pub(crate) fn verdict(
    brain: &Brain,
    policy: &Policy,
    host: &HostId,
    wish: Maintain,
) -> Result<String, String> {
    let cluster = brain
        .cluster()
        .ok_or("this host has only begun to lead; ask again")?;
    judge(cluster, &brain.settings().balance(), policy, host, wish)
}

/// The leader may not have read yet which other hosts are on their way out of service.
fn judge(
    cluster: &Cluster,
    balance: &Balance,
    policy: &Policy,
    host: &HostId,
    wish: Maintain,
) -> Result<String, String> {
    if !cluster.hosts.contains_key(host) {
        return Err(format!(
            "there is no host {host}; `godwit hosts` lists them"
        ));
    }
    if !wish.enter {
        return Ok(format!("{host} is back in service"));
    }
    let mut cluster = cluster.clone();
    for other in policy.maintenance.union(&policy.leaving) {
        let other = cluster.hosts.get_mut(other);
        if let Some(other) = other.filter(|other| other.mode.serves()) {
            other.mode = HostMode::Maintenance;
        }
    }
    let plan = evacuate(&cluster, host, balance, wish.force);
    let plan = plan.map_err(|refused| {
        let remedies = refused.remedies.join("; ");
        format!("{host} is needed: {}; {remedies}", refused.because)
    })?;
    let mut words = match plan.moves().count() {
        0 => format!("{host} takes no guests any more"),
        1 => format!("{host} takes no guests any more; 1 has to move"),
        many => format!("{host} takes no guests any more; {many} have to move"),
    };
    if let Some(warning) = objection(&cluster, host, balance) {
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

#[cfg(test)]
mod tests {
    use cluster_core::model::{Guest, Host, Resources};

    use super::*;

    #[test]
    fn two_orders_in_quick_succession_do_not_both_pass() {
        let mut cluster = Cluster::default();
        for name in ["a", "b", "c", "d"] {
            let host = Host {
                capacity: Resources::new(8000, 16 * 1024),
                ..Host::default()
            };
            cluster.hosts.insert(name.to_owned(), host);
        }
        for (name, host) in [("db1", "c"), ("db2", "d")] {
            let mut guest = Guest::sized(Resources::new(0, 10 * 1024));
            guest.host = Some(host.to_owned());
            cluster.guests.insert(name.to_owned(), guest);
        }
        let enter = Maintain {
            enter: true,
            force: false,
        };
        let (balance, mut policy) = (Balance::default(), Policy::default());
        let ask = |policy: &Policy, host: &str| {
            judge(&cluster, &balance, policy, &host.to_owned(), enter)
        };
        ask(&policy, "a").unwrap();
        policy.maintenance.insert("b".to_owned());
        let why = ask(&policy, "a").unwrap_err();
        assert!(why.starts_with("a is needed: "), "{why}");
        policy.leaving = std::mem::take(&mut policy.maintenance);
        assert!(ask(&policy, "a").is_err());
        policy.leaving = ["a".to_owned()].into();
        assert!(ask(&policy, "a").is_ok(), "asked for twice");
    }
}
