//! Admission control as operators meet it: asked before a guest is started, shown as reserve.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::post;
use axum::{Json, Router};
use cluster_core::admission::Refusal;
use cluster_core::brain::Brain;
use cluster_core::model::{Guest, Resources};
use cluster_core::settings::Enforcement;
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use crate::api::routes::{Api, Refused};
use crate::api::views::ClusterView;

/// The size for which the reserve is told while there are no guests, in MiB.
const USUAL_MEMORY_MIB: u64 = 1024;

/// What admission control says of a start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// What stands against it, and what would help.
    pub objection: Option<String>,
    /// It may go on all the same: the policy only warns.
    pub only_warns: bool,
}

/// What members may ask of the leader.
pub fn member() -> Router<Arc<Api>> {
    Router::new().route("/member/guests/{guest}/admission", post(judge_here))
}

/// May this guest be started? Refused, or a warning, as the cluster's policy says.
pub async fn ask(api: &Arc<Api>, name: &str, guest: Guest) -> Result<Option<String>, Refused> {
    let verdict = if let Some(leader) = api.other_leader() {
        let path = format!("/member/guests/{name}/admission");
        leader.call(Method::POST, &path, Some(&guest)).await?
    } else {
        let (api, name) = (State(api.clone()), Path(name.to_owned()));
        judge_here(api, name, Json(guest)).await?.0
    };
    match verdict.objection {
        Some(why) if !verdict.only_warns => Err(Refused(StatusCode::CONFLICT, why)),
        other => Ok(other),
    }
}

async fn judge_here(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    Json(guest): Json<Guest>,
) -> Result<Json<Verdict>, Refused> {
    let judge = move |brain: &mut Brain, _now_us| {
        let only_warns = brain.settings().enforcement == Enforcement::Warn;
        let refusal = brain.admit(&name, &guest).and_then(Result::err);
        Verdict {
            objection: refusal.map(|refusal| words(&name, &refusal)),
            only_warns,
        }
    };
    api.ask_leading(judge).await.map(Json)
}

fn words(guest: &str, refusal: &Refusal) -> String {
    let mut words = format!(
        "admission control: {guest} may not start: {}",
        refusal.because
    );
    if !refusal.remedies.is_empty() {
        words = format!("{words}; what helps: {}", refusal.remedies.join(", or "));
    }
    words
}

/// What the leader can still take in, in words: guests as large as the largest there is.
pub async fn reserve(api: &Api, view: &ClusterView) -> Result<String, Refused> {
    let largest = view.guests.iter().map(|guest| guest.memory_mib).max();
    let size = Resources::new(0, largest.unwrap_or(USUAL_MEMORY_MIB));
    let reserve = api.ask_leading(move |brain, _| brain.reserve(size)).await?;
    Ok(reserve.map(|reserve| reserve.words).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_what_is_wrong_and_what_helps() {
        let refusal = Refusal {
            failing: vec!["b".to_owned()],
            proved: true,
            because: "the guests of b would not fit elsewhere".to_owned(),
            remedies: vec!["add a host".to_owned(), "stop a guest".to_owned()],
        };
        assert_eq!(
            words("web1", &refusal),
            "admission control: web1 may not start: the guests of b would not fit elsewhere; \
             what helps: add a host, or stop a guest"
        );
    }
}
