//! `GET /metrics`. What concerns the whole cluster comes from its leader only, so that sums
//! over all agents are right.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::header;
use shared_storage::clock::boottime_us;

use super::Counts;
use super::process::Usage;
use super::text::{CONTENT_TYPE, Page};
use crate::api::shared::Api;
use crate::picture::Picture;

/// What people and scripts may ask.
pub fn public() -> Router<Arc<Api>> {
    Router::new().route("/metrics", get(metrics))
}

async fn metrics(State(api): State<Arc<Api>>) -> impl IntoResponse {
    let mut page = Page::default();
    let picture = api.picture.borrow().clone();
    agent(&mut page, &api);
    host(&mut page, &api, &picture);
    counted(&mut page, &api.metrics.read());
    if picture.leads {
        cluster(&mut page, &picture);
    }
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], page.text())
}

fn agent(page: &mut Page, api: &Api) {
    page.family("godwit_agent_info", "gauge", "Always 1; says who answers.");
    let version = env!("CARGO_PKG_VERSION");
    let labels = [("host", &api.me[..]), ("version", version)];
    page.sample("godwit_agent_info", &labels, 1);
    let Some(usage) = Usage::read() else { return };
    page.counter(
        "process_cpu_seconds_total",
        "Processor time the agent has used.",
        usage.cpu.as_secs_f64(),
    );
    page.gauge(
        "process_resident_memory_bytes",
        "Memory the agent has.",
        usage.resident_bytes,
    );
    page.gauge(
        "process_open_fds",
        "Files and sockets the agent has open.",
        usage.open_files,
    );
}

fn host(page: &mut Page, api: &Api, picture: &Picture) {
    page.gauge(
        "godwit_leader",
        "1 on the host that leads the cluster.",
        u8::from(picture.leads),
    );
    let keeper = &api.host.keeper;
    page.gauge(
        "godwit_heartbeat_age_seconds",
        "Since the datastore last took a heartbeat of this host.",
        keeper.since_ack().as_secs_f64(),
    );
    let left_us = keeper.hold().deadline_us().saturating_sub(boottime_us());
    page.gauge(
        "godwit_lease_left_seconds",
        "How long this host may go on if no heartbeat succeeds any more.",
        left_us as f64 / 1e6,
    );
    let here = picture
        .view
        .guests
        .iter()
        .filter(|guest| guest.host.as_ref() == Some(&api.me));
    page.gauge(
        "godwit_host_guests",
        "Guests that this host runs.",
        here.count(),
    );
    if let Some(this) = picture.view.hosts.iter().find(|host| host.name == api.me) {
        page.gauge(
            "godwit_host_memory_bytes",
            "Memory of this host that guests may use.",
            this.capacity.memory_mib << 20,
        );
        page.gauge(
            "godwit_host_memory_reserved_bytes",
            "Memory of the guests it runs.",
            this.reserved.memory_mib << 20,
        );
        page.gauge(
            "godwit_host_cpu_cores",
            "Processor cores of this host that guests may use.",
            this.capacity.mcpu as f64 / 1000.0,
        );
        page.gauge(
            "godwit_host_cpu_demand_cores",
            "Processor cores that the guests it runs want.",
            this.demand.mcpu as f64 / 1000.0,
        );
    }
}

fn counted(page: &mut Page, counts: &Counts) {
    page.counter(
        "godwit_guest_starts_total",
        "Guests started here because that was wanted.",
        counts.starts,
    );
    page.counter(
        "godwit_failovers_total",
        "Guests started here because their host was lost.",
        counts.failovers,
    );
    let name = "godwit_migrations_begun_total";
    page.family(
        name,
        "counter",
        "Live migrations out of this host, by who wanted them.",
    );
    for (by, count) in ["operator", "cluster"].iter().zip(counts.migrations_begun) {
        page.sample(name, &[("by", by)], count);
    }
    let name = "godwit_migrations_total";
    page.family(
        name,
        "counter",
        "Live migrations out of this host that are over.",
    );
    page.sample(name, &[("result", "moved")], counts.migrations_done);
    page.sample(name, &[("result", "failed")], counts.migrations_failed);
    page.counter(
        "godwit_migration_blackout_seconds_total",
        "Blackouts of all migrations out of this host.",
        counts.blackout_us as f64 / 1e6,
    );
    let name = "godwit_peer_messages_total";
    page.family(
        name,
        "counter",
        "Messages to another member, by what became of them.",
    );
    for (peer, link) in &counts.peers {
        page.sample(name, &[("peer", peer), ("result", "taken")], link.delivered);
        page.sample(name, &[("peer", peer), ("result", "lost")], link.lost);
    }
    let name = "godwit_peer_round_trip_seconds";
    page.family(
        name,
        "gauge",
        "From a message to its receipt by another member, smoothed.",
    );
    for (peer, link) in &counts.peers {
        page.sample(name, &[("peer", peer)], link.round_trip.as_secs_f64());
    }
    let name = "godwit_api_requests_total";
    page.family(
        name,
        "counter",
        "Requests, by where they came from and how they were answered.",
    );
    for ((from, status), count) in &counts.requests {
        let labels = [("from", *from), ("status", &status.to_string())];
        page.sample(name, &labels, count);
    }
}

fn cluster(page: &mut Page, picture: &Picture) {
    let view = &picture.view;
    let hosts = view.hosts.iter().map(|host| host.health.as_str());
    by(
        page,
        "godwit_hosts",
        "Hosts of the cluster.",
        "health",
        hosts,
    );
    let guests = view.guests.iter().map(|guest| guest.state.as_str());
    by(
        page,
        "godwit_guests",
        "Guests of the cluster.",
        "state",
        guests,
    );
    page.gauge(
        "godwit_problems",
        "What is wrong, as `godwit status` lists it.",
        view.problems.len(),
    );
    if let Some(balance) = &view.balance {
        page.gauge(
            "godwit_demand_met_ratio",
            "Processor time that guests get of what they want.",
            balance.met_permille as f64 / 1000.0,
        );
        page.gauge(
            "godwit_imbalance_ratio",
            "Standard deviation of the hosts' loads.",
            balance.imbalance_permille as f64 / 1000.0,
        );
    }
    if let Some(drs) = &picture.drs {
        page.gauge(
            "godwit_drs_recommendations",
            "Recommendations that wait.",
            drs.round.recommendations.len(),
        );
        page.gauge(
            "godwit_drs_moves_under_way",
            "Recommendations that are being carried out.",
            drs.under_way.len(),
        );
    }
}

fn by<'a>(
    page: &mut Page,
    name: &str,
    help: &str,
    label: &str,
    values: impl Iterator<Item = &'a str>,
) {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    page.family(name, "gauge", help);
    for (value, count) in counts {
        page.sample(name, &[(label, value)], count);
    }
}
