//! The routes about rules, groups of hosts and reservations.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use cluster_core::model::{Cluster, GroupId, GuestId, Host, HostId, Rule};
use cluster_core::rules::{Contradiction, contradicts};
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use shared_storage::Datastore;
use storage_core::name::check_name;

use super::words::sentence;
use crate::api::answer::{Answer, Refused, said};
use crate::api::edit;
use crate::api::shared::Api;
use crate::api::views::EditGuest;
use crate::http::wish::Wish;
use crate::inventory;
use crate::policy::Policy;

/// `GET /v1/rules`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesView {
    /// Rules by name.
    pub rules: BTreeMap<String, Rule>,
    /// Groups of hosts.
    pub groups: BTreeMap<GroupId, BTreeSet<HostId>>,
}

/// `POST /v1/guests/{guest}/reservation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Reserve {
    /// Guaranteed processor time, in thousandths of a core.
    pub mcpu: u64,
}

/// What people and scripts may ask.
pub fn public() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/rules", get(show))
        .route("/v1/rules/{rule}", put(add).delete(remove))
        .route("/v1/groups/{group}", put(set_group))
        .route("/v1/guests/{guest}/reservation", post(reserve))
}

async fn show(State(api): State<Arc<Api>>) -> Result<Json<RulesView>, Refused> {
    let policy = api.on_store(|store| Ok(Policy::read(store)?.spec)).await?;
    let Policy { rules, groups, .. } = policy;
    Ok(Json(RulesView { rules, groups }))
}

fn conflict(why: String) -> Refused {
    Refused(StatusCode::CONFLICT, why)
}

async fn add(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    Wish(rule): Wish<Rule>,
) -> Answer {
    named("rule", &name)?;
    let words = format!("{name}: {}", sentence(&rule));
    let change = move |store: &Datastore| {
        let hosts_and_guests = cluster(store)?;
        Policy::change(store, |policy| {
            check_meant(policy, &rule)?;
            let found = contradicts(&under(&hosts_and_guests, policy), &name, &rule);
            if !found.is_empty() {
                return Err(conflict(refusal(&found)));
            }
            policy.rules.insert(name.clone(), rule.clone());
            Ok(())
        })
    };
    api.on_store(change).await?;
    api.nudge.nudge();
    Ok(said(words))
}

/// Its name has to be one.
fn named(what: &str, name: &str) -> Result<(), Refused> {
    check_name(name)
        .map_err(|error| Refused(StatusCode::BAD_REQUEST, format!("{what} {name:?}: {error}")))
}

/// A guest-host rule that says nothing is a slip.
fn check_meant(policy: &Policy, rule: &Rule) -> Result<(), Refused> {
    let Rule::GuestsToHosts { guests, group, .. } = rule else {
        return Ok(());
    };
    if guests.is_empty() {
        return Err(conflict("the rule names no guest".to_owned()));
    }
    if !policy.groups.contains_key(group) {
        let why =
            format!("there is no group {group}; make it with: godwit rules group {group} HOST...");
        return Err(conflict(why));
    }
    Ok(())
}

fn refusal(found: &[Contradiction]) -> String {
    let each: Vec<String> = found
        .iter()
        .map(|one| {
            let rules: Vec<&str> = one.rules.iter().map(String::as_str).collect();
            format!("{} (rules {})", one.why, rules.join(", "))
        })
        .collect();
    format!(
        "the rule cannot be obeyed: {}; change or remove one of them",
        each.join("; ")
    )
}

async fn remove(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Answer {
    let words = format!("rule {name} is gone");
    let change = move |store: &Datastore| {
        Policy::change(store, |policy| match policy.rules.remove(&name) {
            Some(_) => Ok(()),
            None => Err(Refused(
                StatusCode::NOT_FOUND,
                format!("there is no rule {name}; `godwit rules list` shows them"),
            )),
        })
    };
    api.on_store(change).await?;
    api.nudge.nudge();
    Ok(said(words))
}

/// An empty list removes the group.
async fn set_group(
    State(api): State<Arc<Api>>,
    Path(group): Path<GroupId>,
    Json(hosts): Json<BTreeSet<HostId>>,
) -> Answer {
    named("group", &group)?;
    let words = if hosts.is_empty() {
        format!("group {group} is gone")
    } else {
        let names: Vec<&str> = hosts.iter().map(String::as_str).collect();
        format!("group {group}: {}", names.join(", "))
    };
    let change = move |store: &Datastore| {
        let hosts_and_guests = cluster(store)?;
        if let Some(unknown) = hosts
            .iter()
            .find(|host| !hosts_and_guests.hosts.contains_key(*host))
        {
            let why = format!("there is no host {unknown}; `godwit hosts` lists them");
            return Err(Refused(StatusCode::NOT_FOUND, why));
        }
        Policy::change(store, |policy| {
            regroup(policy, &hosts_and_guests, &group, &hosts)
        })
    };
    api.on_store(change).await?;
    api.nudge.nudge();
    Ok(said(words))
}

fn regroup(
    policy: &mut Policy,
    hosts_and_guests: &Cluster,
    group: &GroupId,
    hosts: &BTreeSet<HostId>,
) -> Result<(), Refused> {
    let uses = |rule: &Rule| matches!(rule, Rule::GuestsToHosts { group: of, .. } if of == group);
    if hosts.is_empty() {
        if let Some((name, _)) = policy.rules.iter().find(|(_, rule)| uses(rule)) {
            let why = format!("rule {name} needs group {group}; remove the rule first");
            return Err(conflict(why));
        }
        if policy.groups.remove(group).is_none() {
            let why = format!("there is no group {group}; `godwit rules list` shows them");
            return Err(Refused(StatusCode::NOT_FOUND, why));
        }
        return Ok(());
    }
    let before = cluster_core::rules::contradictions(&under(hosts_and_guests, policy));
    policy.groups.insert(group.clone(), hosts.clone());
    let mut found = cluster_core::rules::contradictions(&under(hosts_and_guests, policy));
    found.retain(|one| !before.contains(one));
    if found.is_empty() {
        Ok(())
    } else {
        Err(conflict(refusal(&found)))
    }
}

/// The hosts and guests there are, wherever they run.
fn cluster(store: &Datastore) -> Result<Cluster, Refused> {
    let inventory = inventory::read(store, false)?.inventory;
    let host = |capacity| Host {
        capacity,
        ..Host::default()
    };
    let hosts = inventory.hosts.into_iter();
    Ok(Cluster {
        hosts: hosts
            .map(|(name, entry)| (name, host(entry.capacity)))
            .collect(),
        guests: inventory.guests,
        rules: BTreeMap::new(),
    })
}

/// These hosts and guests under a policy.
fn under(hosts_and_guests: &Cluster, policy: &Policy) -> Cluster {
    let mut cluster = hosts_and_guests.clone();
    cluster.rules.clone_from(&policy.rules);
    for (group, hosts) in &policy.groups {
        for name in hosts {
            if let Some(host) = cluster.hosts.get_mut(name) {
                host.groups.insert(group.clone());
            }
        }
    }
    cluster
}

async fn reserve(
    State(api): State<Arc<Api>>,
    Path(guest): Path<GuestId>,
    Wish(wish): Wish<Reserve>,
) -> Answer {
    let wish = EditGuest {
        reserve_mcpu: Some(wish.mcpu),
        ..EditGuest::default()
    };
    edit::change(&api, guest, wish).await
}

#[cfg(test)]
mod tests {
    use cluster_core::model::{Affinity, Guest, Resources};

    use super::*;

    fn hosts_and_guests() -> Cluster {
        let mut cluster = Cluster::default();
        for name in ["a", "b"] {
            let host = Host {
                capacity: Resources::new(4000, 4096),
                ..Host::default()
            };
            cluster.hosts.insert(name.to_owned(), host);
        }
        for name in ["g1", "g2"] {
            let guest = Guest::sized(Resources::new(1000, 1024));
            cluster.guests.insert(name.to_owned(), guest);
        }
        cluster
    }

    #[test]
    fn a_group_that_rules_need_stays_and_leaves_them_a_host() {
        let cluster = hosts_and_guests();
        let mut policy = Policy::default();
        let all = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        regroup(&mut policy, &cluster, &"rack".to_owned(), &all).unwrap();
        let rule = |affinity| Rule::GuestsToHosts {
            guests: ["g1".to_owned()].into(),
            group: "rack".to_owned(),
            affinity,
            hard: true,
        };
        let off = contradicts(&under(&cluster, &policy), "r", &rule(Affinity::Off));
        assert!(refusal(&off).contains("no host is left for g1"), "{off:?}");
        policy.rules.insert("r".to_owned(), rule(Affinity::On));
        let gone = regroup(&mut policy, &cluster, &"rack".to_owned(), &BTreeSet::new());
        assert!(gone.unwrap_err().1.contains("rule r needs group rack"));
        let one = BTreeSet::from(["a".to_owned()]);
        let apart = ["g1", "g2"].map(String::from).into();
        policy
            .rules
            .insert("apart".to_owned(), Rule::KeepApart { guests: apart });
        regroup(&mut policy, &cluster, &"rack".to_owned(), &one).unwrap();
    }
}
