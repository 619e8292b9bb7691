//! What contradicts is found and named, and nothing else.

use proptest::prelude::*;

use super::*;
use crate::model::{Affinity, Guest, Host};
use crate::rules::violations;

fn cluster(hosts: usize, guests: usize) -> Cluster {
    let capacity = Resources::new(4000, 4096);
    let host = |i: usize| {
        let groups = if i == 0 {
            BTreeSet::from(["ssd".into()])
        } else {
            BTreeSet::new()
        };
        (
            format!("h{i}"),
            Host {
                capacity,
                groups,
                ..Host::default()
            },
        )
    };
    let guest = |i| (format!("g{i}"), Guest::sized(Resources::new(1000, 1024)));
    Cluster {
        hosts: (0..hosts).map(host).collect(),
        guests: (0..guests).map(guest).collect(),
        rules: BTreeMap::new(),
    }
}

fn names(guests: &[usize]) -> BTreeSet<GuestId> {
    guests.iter().map(|i| format!("g{i}")).collect()
}

fn together(guests: &[usize]) -> Rule {
    Rule::KeepTogether {
        guests: names(guests),
    }
}

fn apart(guests: &[usize]) -> Rule {
    Rule::KeepApart {
        guests: names(guests),
    }
}

fn on_ssd(guests: &[usize], affinity: Affinity) -> Rule {
    Rule::GuestsToHosts {
        guests: names(guests),
        group: "ssd".into(),
        affinity,
        hard: true,
    }
}

#[test]
fn together_over_two_rules_and_apart_is_found_and_names_all_three() {
    let mut cluster = cluster(3, 4);
    cluster.rules.insert("t1".into(), together(&[0, 1]));
    cluster.rules.insert("t2".into(), together(&[1, 2]));
    assert!(contradictions(&cluster).is_empty());
    let found = contradicts(&cluster, "split", &apart(&[0, 2]));
    let rules = BTreeSet::from(["split".into(), "t1".into(), "t2".into()]);
    assert_eq!(found[0].rules, rules);
    assert_eq!(found[0].why, "g0 and g2 are kept together and kept apart");
}

#[test]
fn no_host_too_small_hosts_and_too_few_hosts_are_found() {
    let mut cluster = cluster(2, 6);
    cluster
        .rules
        .insert("on".into(), on_ssd(&[0, 1], Affinity::On));
    let off = contradicts(&cluster, "off", &on_ssd(&[1], Affinity::Off));
    assert!(off[0].why.contains("no host is left for g1"), "{off:?}");
    let large = contradicts(&cluster, "all", &together(&[1, 2, 3, 4, 5]));
    assert!(large[0].why.contains("more than any host"), "{large:?}");
    let few = contradicts(&cluster, "spread", &apart(&[2, 3, 4]));
    assert!(few[0].why.contains("for only 2 of them"), "{few:?}");
    let both = contradicts(&cluster, "pair", &apart(&[0, 1]));
    assert!(
        both[0].rules.contains("on") && both[0].rules.contains("pair"),
        "{both:?}"
    );
    let unknown = contradicts(&cluster, "ghost", &together(&[1, 9]));
    assert!(
        unknown[0].why.contains("g9, which does not exist"),
        "{unknown:?}"
    );
}

#[test]
fn three_pairs_to_be_apart_on_two_hosts_are_found() {
    let mut cluster = cluster(2, 3);
    cluster.rules.insert("p1".into(), apart(&[0, 1]));
    cluster.rules.insert("p2".into(), apart(&[1, 2]));
    assert!(contradictions(&cluster).is_empty());
    let found = contradicts(&cluster, "p3", &apart(&[0, 2]));
    let rules = BTreeSet::from(["p1".into(), "p2".into(), "p3".into()]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].rules, rules);
    assert!(
        found[0].why.starts_with("wherever g0, g1, g2 are placed"),
        "{found:?}"
    );
}

#[test]
fn a_rule_that_has_nothing_to_do_with_it_is_not_named() {
    let mut cluster = cluster(2, 6);
    for (name, rule) in [
        ("p1", apart(&[0, 1])),
        ("p2", apart(&[1, 2])),
        ("also", together(&[2, 3])),
        ("far", together(&[4, 5])),
    ] {
        cluster.rules.insert(name.into(), rule);
    }
    let found = contradicts(&cluster, "p3", &apart(&[0, 2]));
    let rules = BTreeSet::from(["p1".into(), "p2".into(), "p3".into()]);
    assert_eq!(found[0].rules, rules);
}

#[test]
fn a_group_that_is_too_small_for_all_that_are_bound_to_it_is_found() {
    let mut cluster = cluster(3, 6);
    cluster
        .rules
        .insert("on1".into(), on_ssd(&[0, 1, 2], Affinity::On));
    assert!(contradictions(&cluster).is_empty());
    let found = contradicts(&cluster, "on2", &on_ssd(&[3, 4], Affinity::On));
    let rules = BTreeSet::from(["on1".into(), "on2".into()]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].rules, rules);
    assert!(
        found[0].why.contains("and h0 have 4 cores and 4 GiB"),
        "{found:?}"
    );
    let stopped = cluster.guests.get_mut("g4").expect("is there");
    stopped.desired = crate::model::Desired::Stopped;
    assert!(contradicts(&cluster, "on2", &on_ssd(&[3, 4], Affinity::On)).is_empty());
}

#[test]
fn many_alike_hosts_are_no_trouble() {
    let mut cluster = cluster(1000, 12);
    let guests: Vec<usize> = (0..12).collect();
    cluster.rules.insert("all".into(), apart(&guests));
    assert!(contradictions(&cluster).is_empty());
}

fn a_rule() -> impl Strategy<Value = Rule> {
    (0..4_u8, 0..4_usize, 0..4_usize, 0..4_usize).prop_map(|(kind, x, y, z)| match kind {
        0 => together(&[x, y]),
        1 => apart(&[x, y, z]),
        2 => on_ssd(&[x, z], Affinity::On),
        _ => on_ssd(&[x, y], Affinity::Off),
    })
}

/// Is there a placement of the guests that these rules bind, the others being nowhere?
fn obeyed_somehow(cluster: &Cluster, rules: &BTreeMap<String, Rule>) -> bool {
    let bound: BTreeSet<&GuestId> = rules.values().flat_map(Rule::guests).collect();
    let hosts: Vec<&HostId> = cluster.hosts.keys().collect();
    (0..hosts.len().pow(bound.len() as u32)).any(|code| {
        let mut placed = cluster.clone();
        placed.rules.clone_from(rules);
        placed.guests.retain(|name, _| bound.contains(name));
        for (i, guest) in placed.guests.values_mut().enumerate() {
            guest.host = Some(hosts[code / hosts.len().pow(i as u32) % hosts.len()].clone());
        }
        let room = crate::placement::usage(&placed);
        violations(&placed).is_empty()
            && room
                .iter()
                .all(|(h, used)| used.reserved.fits(placed.hosts[h].capacity))
    })
}

/// The rules in sets that share no guest and no group, found the slow way.
fn sets(rules: &BTreeMap<String, Rule>) -> Vec<BTreeMap<String, Rule>> {
    let touches = |one: &Rule, other: &Rule| {
        let both = [one, other].map(|rule| matches!(rule, Rule::GuestsToHosts { .. }));
        both == [true, true] || !one.guests().is_disjoint(other.guests())
    };
    let mut left = rules.clone();
    let mut sets = Vec::new();
    while let Some((name, rule)) = left.pop_first() {
        let mut set = BTreeMap::from([(name, rule)]);
        while let Some(next) = left
            .iter()
            .find(|(_, rule)| set.values().any(|other| touches(rule, other)))
            .map(|(name, _)| name.clone())
        {
            set.extend(left.remove_entry(&next));
        }
        sets.push(set);
    }
    sets
}

proptest! {
    /// A contradiction is found where there is no placement, and nowhere else.
    #[test]
    fn found_where_no_placement_obeys_all_rules_and_nowhere_else(
        rules in prop::collection::vec(a_rule(), 1..6),
        sizes in prop::collection::vec(1..4_u64, 4),
        hosts in 1..4_usize,
    ) {
        let mut cluster = cluster(hosts, 4);
        for (guest, size) in cluster.guests.values_mut().zip(sizes) {
            guest.reservation.memory_mib = size * 1024;
        }
        for (i, rule) in rules.into_iter().enumerate() {
            if rule.guests().len() > 1 || matches!(rule, Rule::GuestsToHosts { .. }) {
                cluster.rules.insert(format!("r{i}"), rule);
            }
        }
        let found = contradictions(&cluster);
        let possible = sets(&cluster.rules).iter().all(|set| obeyed_somehow(&cluster, set));
        prop_assert_eq!(found.is_empty(), possible, "{:?}", found);
        for one in found {
            let named = cluster.rules.clone().into_iter();
            let named = named.filter(|(name, _)| one.rules.contains(name)).collect();
            prop_assert!(!obeyed_somehow(&cluster, &named), "{:?}", one);
        }
    }
}
