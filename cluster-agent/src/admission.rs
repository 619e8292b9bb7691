//! Admission control as operators meet it: asked before a guest is started, shown as reserve.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::post;
use axum::{Json, Router};
use cluster_core::admission::Refusal;
use cluster_core::brain::Brain;
use cluster_core::model::{Guest, GuestId, HostId, Resources};
use cluster_core::settings::Enforcement;
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use crate::api::answer::Refused;
use crate::api::shared::Api;
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
    Router::new()
        .route("/member/guests/{guest}/admission", post(judge_here))
        .route("/member/guests/{guest}/another-try", post(forgive_here))
}

/// Where a guest is to start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Where {
    /// On this host; where the cluster thinks best if none is named.
    #[serde(default)]
    pub on: Option<HostId>,
}

/// A guest that somebody wants to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Candidate {
    /// What it is.
    pub guest: Guest,
    /// Where it is to start; nothing if it runs, and only its reservation is to change.
    pub place: Option<Where>,
}

/// May this guest be started? Refused, or a warning, as the cluster's policy says.
pub async fn ask(
    api: &Arc<Api>,
    name: &str,
    candidate: Candidate,
) -> Result<Option<String>, Refused> {
    let verdict = if let Some(leader) = api.other_leader() {
        let path = format!("/member/guests/{name}/admission");
        leader.call(Method::POST, &path, Some(&candidate)).await?
    } else {
        let (api, name) = (State(api.clone()), Path(name.to_owned()));
        judge_here(api, name, Json(candidate)).await?.0
    };
    match verdict.objection {
        Some(why) if !verdict.only_warns => Err(Refused(StatusCode::CONFLICT, why)),
        other => Ok(other),
    }
}

/// The operator wants a guest that is to run tried again, however often it failed to start.
pub async fn try_again(api: &Arc<Api>, name: &str) -> Result<(), Refused> {
    if let Some(leader) = api.other_leader() {
        let path = format!("/member/guests/{name}/another-try");
        return Ok(leader.call(Method::POST, &path, None::<&()>).await?);
    }
    let here = forgive_here(State(api.clone()), Path(name.to_owned())).await;
    here.map(|_| ())
}

async fn forgive_here(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<()>, Refused> {
    let forgive = move |brain: &mut Brain, _now_us| brain.forgive(&name);
    api.ask_leading(forgive).await.map(Json)
}

async fn judge_here(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    Json(candidate): Json<Candidate>,
) -> Result<Json<Verdict>, Refused> {
    let judge = move |brain: &mut Brain, _now_us| judge(brain, &name, &candidate);
    api.ask_leading(judge).await.map(Json)
}

fn judge(brain: &mut Brain, name: &GuestId, candidate: &Candidate) -> Verdict {
    let Candidate { guest, place } = candidate;
    let only_warns = brain.settings().enforcement == Enforcement::Warn;
    let admitted = brain.admit(name, guest);
    let refusal = admitted
        .as_ref()
        .and_then(|admitted| admitted.as_ref().err());
    let objection = refusal.map(|refusal| words(name, refusal));
    if objection.is_some() && !only_warns {
        return Verdict {
            objection,
            only_warns,
        };
    }
    let best = admitted.and_then(Result::ok).map(|admitted| admitted.host);
    let placed = match place {
        None => Ok(None),
        Some(Where { on: Some(host) }) => brain.place_on(name, guest, host),
        Some(Where { on: None }) if brain.is_placed_by_hand(guest) => {
            let best = best.as_deref().unwrap_or("HOST");
            Err(format!(
                "{name} is placed by hand, for its automation is manual; best would be: \
                 godwit start {name} --on {best}"
            ))
        }
        Some(Where { on: None }) => {
            if let Some(best) = best {
                brain.expect(name, guest, best, "admission control");
            }
            Ok(None)
        }
    };
    match placed {
        Err(why) => Verdict {
            objection: Some(why),
            only_warns: false,
        },
        Ok(warning) => Verdict {
            objection: objection.or(warning),
            only_warns,
        },
    }
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
