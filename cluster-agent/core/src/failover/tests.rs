//! What becomes of starts that fail.

mod order;
mod queue;

use alloc::string::ToString;

use super::*;
use crate::model::{Affinity, Guest, Host, Resources, Rule};

const SECOND: u64 = 1_000_000;

struct Stage {
    cluster: Cluster,
    whereabouts: BTreeMap<GuestId, Whereabouts>,
    owners: Owners,
    settings: Settings,
}

impl Stage {
    /// Three hosts, and a guest that none of them runs.
    fn set(start_attempts: u32) -> Self {
        let host = Host {
            capacity: Resources::new(8000, 8192),
            ..Host::default()
        };
        let guest = Guest::sized(Resources::new(1000, 1024));
        let hosts = ["a", "b", "c"].map(|name| (name.to_string(), host.clone()));
        Self {
            cluster: Cluster {
                hosts: hosts.into(),
                guests: [("web".to_string(), guest)].into(),
                rules: BTreeMap::new(),
            },
            whereabouts: [("web".to_string(), Whereabouts::Lost(1, Loss::Free))].into(),
            owners: Owners::default(),
            settings: Settings {
                start_attempts,
                ..Settings::default()
            },
        }
    }

    fn now(&self) -> Situation<'_> {
        Situation {
            cluster: &self.cluster,
            whereabouts: &self.whereabouts,
            owners: &self.owners,
            settings: &self.settings,
        }
    }
}

#[test]
fn a_start_that_fails_is_tried_elsewhere_and_given_up_in_the_end_and_all_is_said() {
    let stage = Stage::set(5);
    let web = "web".to_string();
    let why = StartOutcome::Failed {
        why: "no /dev/kvm".to_string(),
    };
    let mut failover = Failover::default();
    let (mut tried, mut waits) = (Vec::new(), Vec::new());
    for now_us in (0..3600 * SECOND).step_by(SECOND as usize) {
        for decision in failover.step(now_us, &stage.now()) {
            match decision {
                Decision::Order { host, guest, .. } => {
                    tried.push(host.clone());
                    let said = failover.answered(now_us, &host, &guest, &why, &stage.settings);
                    let Some(Decision::Failed { because, .. }) = said else {
                        panic!("{said:?}");
                    };
                    let attempt = format!("attempt {} of 5 on {host}: no /dev/kvm", tried.len());
                    assert!(because.starts_with(&attempt), "{because}");
                }
                Decision::Waits { because, .. } => waits.push(because),
                Decision::Failed { because, .. } => panic!("{because}"),
            }
        }
    }
    assert_eq!(tried.len(), 5, "{tried:?}");
    tried[..3].sort();
    assert_eq!(tried[..3], ["a", "b", "c"], "each host once, then anew");
    let [given_up] = &waits[..] else {
        panic!("said once: {waits:?}");
    };
    let last = format!(
        "given up after 5 attempts, the last on {}: no /dev/kvm",
        tried[4]
    );
    assert_eq!(*given_up, last);
    assert_eq!(failover.failed_starts(&web), 5);
    assert!(
        failover
            .waiting()
            .any(|(guest, why)| *guest == web && *why == last)
    );
    failover.forgive(&web);
    let again = failover.step(3600 * SECOND, &stage.now());
    assert!(matches!(again[..], [Decision::Order { .. }]), "{again:?}");
}

/// Lets every order fail, until nothing is tried any more; how many there were.
fn fail_all(failover: &mut Failover, from_s: u64, stage: &Stage) -> u32 {
    let why = StartOutcome::Failed {
        why: "no image".to_string(),
    };
    let mut orders = 0;
    for now_us in (from_s * SECOND..(from_s + 3600) * SECOND).step_by(SECOND as usize) {
        for decision in failover.step(now_us, &stage.now()) {
            if let Decision::Order { host, guest, .. } = decision {
                orders += 1;
                failover.answered(now_us, &host, &guest, &why, &stage.settings);
            }
        }
    }
    orders
}

#[test]
fn whoever_changes_a_guest_wants_it_tried_anew() {
    let mut stage = Stage::set(3);
    let mut failover = Failover::default();
    assert_eq!(fail_all(&mut failover, 0, &stage), 3);
    assert_eq!(fail_all(&mut failover, 4000, &stage), 0, "given up");
    stage.cluster.guests.get_mut("web").unwrap().revision += 1;
    assert_eq!(fail_all(&mut failover, 8000, &stage), 3, "anew");
}

#[test]
fn a_guest_that_dies_wherever_it_is_started_is_given_up_in_the_end() {
    let mut stage = Stage::set(4);
    let mut failover = Failover::default();
    let mut starts = 0;
    for epoch in 1..100 {
        let lost = Whereabouts::Lost(epoch, Loss::Free);
        stage.whereabouts.insert("web".to_string(), lost);
        let now_us = epoch * 400 * SECOND;
        for decision in failover.step(now_us, &stage.now()) {
            if let Decision::Order { guest, host, .. } = decision {
                starts += 1;
                let runs = StartOutcome::Running { epoch };
                failover.answered(now_us, &host, &guest, &runs, &stage.settings);
                let held = Whereabouts::Held(host);
                stage.whereabouts.insert(guest, held);
                failover.step(now_us + 30 * SECOND, &stage.now());
            }
        }
        // Its host restarts it for a while and lets it go.
        let lost = Whereabouts::Lost(epoch + 1, Loss::Free);
        stage.whereabouts.insert("web".to_string(), lost);
        failover.step(now_us + 60 * SECOND, &stage.now());
    }
    assert_eq!(starts, 4);
    let waits: Vec<_> = failover.waiting().map(|(_, why)| why.as_str()).collect();
    assert!(
        waits[0].starts_with("given up after 4 attempts"),
        "{waits:?}"
    );
}

#[test]
fn a_host_that_dies_under_a_guest_says_nothing_against_the_guest() {
    let mut stage = Stage::set(2);
    let mut failover = Failover::default();
    for epoch in 1..20 {
        let loss = Loss::Lapsed("z".to_string(), "z is dead".to_string());
        let lost = Whereabouts::Lost(epoch, loss);
        stage.whereabouts.insert("web".to_string(), lost);
        let now_us = epoch * 60 * SECOND;
        let orders = failover.step(now_us, &stage.now());
        let [Decision::Order { guest, host, .. }] = &orders[..] else {
            panic!("{orders:?}");
        };
        let runs = StartOutcome::Running { epoch };
        failover.answered(now_us, host, guest, &runs, &stage.settings);
    }
}

#[test]
fn an_order_that_nobody_answers_goes_to_another_host_and_counts_for_nothing() {
    let stage = Stage::set(2);
    let mut failover = Failover::default();
    let ordered = failover.step(0, &stage.now());
    let [Decision::Order { host, .. }] = &ordered[..] else {
        panic!("{ordered:?}");
    };
    assert!(failover.step(4 * SECOND, &stage.now()).is_empty());
    let late = failover.step(5 * SECOND, &stage.now());
    let [
        Decision::Failed { because, .. },
        Decision::Order { host: next, .. },
    ] = &late[..]
    else {
        panic!("{late:?}");
    };
    assert!(because.contains("no answer within 5000 ms"), "{because}");
    assert_ne!(host, next);
    let orders = (6..600).flat_map(|now_s| failover.step(now_s * SECOND, &stage.now()));
    let orders = orders.filter(|decision| matches!(decision, Decision::Order { .. }));
    assert!(
        orders.count() > 50,
        "it is tried for as long as it is wanted"
    );
    assert_eq!(failover.failed_starts(&"web".to_string()), 0);
}

/// Where the lost guest is started with `db` on one host and this rule; or what it waits for.
fn restarted_under(rule: Option<Rule>, db_on: &str) -> Result<HostId, String> {
    let mut stage = Stage::set(5);
    // Only `c` is idle but for what `db` needs, and so the best.
    for (name, host, cores) in [("big1", "a", 6), ("big2", "b", 6), ("db", db_on, 0)] {
        let mut guest = Guest::sized(Resources::new(cores * 1000, 512));
        guest.host = Some(host.to_string());
        stage.cluster.guests.insert(name.to_string(), guest);
        let at = Whereabouts::Held(host.to_string());
        stage.whereabouts.insert(name.to_string(), at);
    }
    let host = stage.cluster.hosts.get_mut("a").expect("is there");
    host.groups.insert("rack".to_string());
    stage.cluster.rules = rule
        .map(|rule| ("rule".to_string(), rule))
        .into_iter()
        .collect();
    match &Failover::default().step(0, &stage.now())[..] {
        [Decision::Order { guest, host, .. }] if guest == "web" => Ok(host.clone()),
        [Decision::Waits { guest, because }] if guest == "web" => Err(because.clone()),
        other => panic!("{other:?}"),
    }
}

fn pair() -> BTreeSet<GuestId> {
    ["web", "db"].map(String::from).into()
}

fn to_hosts(affinity: Affinity) -> Rule {
    Rule::GuestsToHosts {
        guests: ["web".to_string()].into(),
        group: "rack".to_string(),
        affinity,
        hard: true,
    }
}

#[test]
fn without_a_rule_the_idle_host_is_the_best() {
    for db_on in ["a", "b", "c"] {
        assert_eq!(restarted_under(None, db_on).as_deref(), Ok("c"));
    }
}

#[test]
fn a_guest_is_restarted_on_the_hosts_that_a_rule_names() {
    let on = restarted_under(Some(to_hosts(Affinity::On)), "b");
    assert_eq!(on.as_deref(), Ok("a"), "busy as it is");
}

#[test]
fn a_guest_is_not_restarted_on_the_hosts_that_a_rule_forbids() {
    let mut stage = Stage::set(5);
    for name in ["a", "c"] {
        let host = stage.cluster.hosts.get_mut(name).expect("is there");
        host.groups.insert("rack".to_string());
    }
    stage.cluster.rules = [("rule".to_string(), to_hosts(Affinity::Off))].into();
    let ordered = Failover::default().step(0, &stage.now());
    let [Decision::Order { host, .. }] = &ordered[..] else {
        panic!("{ordered:?}");
    };
    assert_eq!(host, "b");
}

#[test]
fn a_guest_is_restarted_beside_the_one_it_belongs_to() {
    let together = Rule::KeepTogether { guests: pair() };
    assert_eq!(restarted_under(Some(together), "b").as_deref(), Ok("b"));
}

#[test]
fn a_guest_is_not_restarted_beside_the_one_it_is_kept_from_and_rather_waits() {
    let apart = Rule::KeepApart { guests: pair() };
    let other = restarted_under(Some(apart), "c").expect("there are two more");
    assert_ne!(other, "c");
    let torn = Rule::KeepTogether { guests: pair() };
    let mut stage = Stage::set(5);
    let mut db = Guest::sized(Resources::new(0, 8000));
    db.host = Some("a".to_string());
    stage.cluster.guests.insert("db".to_string(), db);
    let at = Whereabouts::Held("a".to_string());
    stage.whereabouts.insert("db".to_string(), at);
    stage.cluster.rules = [("torn".to_string(), torn)].into();
    let waits = Failover::default().step(0, &stage.now());
    let [Decision::Waits { because, .. }] = &waits[..] else {
        panic!("{waits:?}");
    };
    assert!(
        because.contains("rule torn: web must run together with db"),
        "{because}"
    );
}
