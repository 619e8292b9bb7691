//! What this host knows of the cluster, drawn for the API.

use std::collections::BTreeMap;

use cluster_core::brain::Brain;
use cluster_core::messages::GuestState;
use cluster_core::model::{GuestId, HostId, Resources};
use cluster_core::score::{Assessment, assess, guest_scores};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::api::views::{BalanceView, ClusterView, GuestView, HostView, Problem};
use crate::drs::view::DrsView;
use crate::guests::Observed;
use crate::inventory::Reading;
use crate::migration::view::MigrationView;
use crate::tokens::Tokens;

/// The cluster as this host sees it. Only the leader's is whole.
#[derive(Debug, Clone, Default)]
pub struct Picture {
    /// Does this host lead?
    pub leads: bool,
    /// Whom it takes for the leader, and where that answers.
    pub leader: Option<(HostId, SocketAddr)>,
    /// Where members answer.
    pub members: BTreeMap<HostId, SocketAddr>,
    /// What the API says; the datastore's part is filled in by the API itself.
    pub view: ClusterView,
    /// Migrations out of this host: the last one of each guest.
    pub migrations: BTreeMap<GuestId, MigrationView>,
    /// What balancing has planned and does, if this host leads.
    pub drs: Option<DrsView>,
    /// What operators from afar show.
    pub tokens: Arc<Tokens>,
}

impl Picture {
    /// Draw it.
    pub fn draw(
        me: &str,
        brain: &Brain,
        reading: &Reading,
        observed: &BTreeMap<GuestId, Observed>,
        migrations: &BTreeMap<GuestId, MigrationView>,
    ) -> Self {
        let members: BTreeMap<_, _> = reading
            .hosts
            .iter()
            .map(|(name, host)| (name.clone(), host.address))
            .collect();
        let leader = brain
            .leader()
            .and_then(|name| Some((name.clone(), *members.get(name)?)));
        let assessment = brain.cluster().map(assess);
        let guests = guests(me, brain, reading, observed);
        let hosts = hosts(me, brain, reading, &guests, assessment.as_ref());
        let problems = problems(&hosts, &guests, leader.is_some());
        Self {
            leads: brain.leads(),
            leader: leader.clone(),
            members,
            view: ClusterView {
                cluster_id: String::new(),
                leader: leader.map(|(name, _)| name),
                hosts,
                guests,
                reserve: String::new(),
                balance: assessment.map(|assessment| BalanceView {
                    met_permille: assessment.satisfied_permille,
                    imbalance_permille: assessment.imbalance_permille,
                    starving: assessment.starving.into_keys().collect(),
                }),
                problems,
            },
            migrations: migrations.clone(),
            drs: DrsView::draw(brain),
            tokens: reading.tokens.clone(),
        }
    }
}

fn guests(
    me: &str,
    brain: &Brain,
    reading: &Reading,
    observed: &BTreeMap<GuestId, Observed>,
) -> Vec<GuestView> {
    let waiting: BTreeMap<_, _> = brain.waiting().into_iter().collect();
    let scores = brain.cluster().map(guest_scores).unwrap_or_default();
    reading
        .guests
        .iter()
        .map(|(name, file)| {
            let local = observed.get(name).and_then(|o| o.local.as_ref());
            let known = brain.cluster().and_then(|cluster| cluster.guests.get(name));
            let host = match local {
                Some(_) => Some(me.to_owned()),
                None => known.and_then(|guest| guest.host.clone()),
            };
            let reason = waiting.get(name).cloned();
            let said = local.map(|l| l.state).or_else(|| brain.reported(name));
            let state = match (said.filter(|_| host.is_some()), &host, &reason) {
                (Some(GuestState::Starting), ..) => "starting",
                (Some(GuestState::Paused), ..) => "paused",
                (Some(GuestState::Arriving), ..) => "arriving",
                (Some(GuestState::Running { .. }), ..) => "running",
                // Its host has its lease and has not said what it does, or not yet let it go.
                (None, Some(_), _) => "unknown",
                (None, None, Some(_)) => "waiting",
                (None, None, None) => "stopped",
            };
            GuestView {
                name: name.clone(),
                host,
                state: state.to_owned(),
                desired: file.desired,
                cpus: file.cpus,
                memory_mib: file.memory_mib,
                demand_mcpu: known.map_or(0, |guest| guest.demand.mcpu),
                score_permille: scores.get(name).copied(),
                rates: brain.observation().and_then(|seen| seen.rates(name)),
                priority: file.priority,
                protected: file.protected,
                after: file.after.clone(),
                epoch: local.map_or(0, |local| local.epoch),
                failed_starts: brain.failed_starts(name),
                reason,
            }
        })
        .collect()
}

fn hosts(
    me: &str,
    brain: &Brain,
    reading: &Reading,
    guests: &[GuestView],
    assessment: Option<&Assessment>,
) -> Vec<HostView> {
    let rests = |name: &HostId| {
        let entry = reading.inventory.hosts.get(name);
        entry.is_some_and(|entry| entry.maintenance)
    };
    let leaves = |name: &HostId| {
        let entry = reading.inventory.hosts.get(name);
        entry.is_some_and(|entry| entry.leaving)
    };
    let loads = assessment.map(|assessment| &assessment.loads);
    reading
        .hosts
        .iter()
        .map(|(name, host)| {
            let health = match brain.peer(name) {
                None if name == me && brain.is_cut_off() => "isolated".to_owned(),
                None if leaves(name) => "leaving".to_owned(),
                None if rests(name) => "in maintenance".to_owned(),
                None => "alive".to_owned(),
                Some((state, _)) => state.word().to_owned(),
            };
            let here = || {
                guests
                    .iter()
                    .filter(|guest| guest.host.as_ref() == Some(name))
            };
            let known = brain.cluster().and_then(|cluster| cluster.hosts.get(name));
            let rates = || here().filter_map(|guest| guest.rates);
            HostView {
                name: name.clone(),
                address: host.address,
                health,
                capacity: known.map_or(host.capacity, |known| known.capacity),
                reserved: Resources::new(0, here().map(|guest| guest.memory_mib).sum()),
                demand: Resources::new(here().map(|guest| guest.demand_mcpu).sum(), 0),
                load_permille: loads.and_then(|of| of.get(name)).copied().unwrap_or(0),
                used: brain.observation().and_then(|seen| seen.host_use(name)),
                disk_kib_s: rates().map(|rates| rates.disk_kib_s).sum(),
                net_kib_s: rates().map(|rates| rates.net_kib_s).sum(),
                guests: here().count() as u64,
                version: host.version.clone(),
                cpu_lacks: reading.cpu_lacks.get(name).cloned().unwrap_or_default(),
            }
        })
        .collect()
}

fn problems(hosts: &[HostView], guests: &[GuestView], led: bool) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !led {
        problems.push(Problem {
            what: "no host leads the cluster".to_owned(),
            remedy: "wait a few seconds; if it stays so, look whether the datastore answers"
                .to_owned(),
        });
    }
    for host in hosts
        .iter()
        .filter(|host| !matches!(&host.health[..], "alive" | "in maintenance" | "leaving"))
    {
        problems.push(Problem {
            what: format!("host {} is {}", host.name, host.health),
            remedy: format!(
                "bring it back, or take it off the list: godwit host forget {}",
                host.name
            ),
        });
    }
    for guest in guests {
        if let Some(reason) = &guest.reason {
            problems.push(Problem {
                what: format!("guest {} waits to be started: {reason}", guest.name),
                remedy: format!("make room, or: godwit stop {}", guest.name),
            });
        }
    }
    problems
}
