//! The loop over rounds: what is carried out, when, and what is only said.

use alloc::vec;

use super::*;
use crate::model::{Host, Resources, Rule};

const S: u64 = 1_000_000;

/// Hosts of four cores, guests on them wanting so many thousandths of a core.
fn cluster(hosts: &[&str], guests: &[(&str, &str, u64)]) -> Cluster {
    let mut cluster = Cluster::default();
    for name in hosts {
        let host = Host {
            capacity: Resources::new(4000, 16 * 1024),
            ..Host::default()
        };
        cluster.hosts.insert((*name).into(), host);
    }
    for (name, at, mcpu) in guests {
        let mut guest = Guest::sized(Resources::new(4000, 1024));
        guest.reservation.mcpu = 0;
        guest.demand.mcpu = *mcpu;
        guest.host = Some((*at).into());
        cluster.guests.insert((*name).into(), guest);
    }
    cluster
}

fn busy() -> Cluster {
    let guests = [("g1", "a", 1800), ("g2", "a", 1800), ("g3", "a", 1800)];
    cluster(&["a", "b"], &guests)
}

fn full() -> Settings {
    let mut settings = Settings::default();
    settings.drs.automation = Automation::Full;
    settings
}

fn moves(decisions: &[Decision]) -> Vec<Move> {
    decisions
        .iter()
        .filter_map(|decision| match decision {
            Decision::Move { one, .. } => Some(one.clone()),
            Decision::Record(..) => None,
        })
        .collect()
}

fn arrive(cluster: &mut Cluster, moves: &[Move]) {
    for one in moves {
        cluster.guests.get_mut(&one.guest).unwrap().host = Some(one.to.clone());
    }
}

#[test]
fn full_automation_acts_once_demand_has_been_observed_and_then_rests() {
    let (mut drs, mut cluster, settings) = (Drs::default(), busy(), full());
    assert!(
        moves(&drs.step(S, &cluster, &settings)).is_empty(),
        "too early"
    );
    assert_eq!(drs.round().recommendations.len(), 1);
    let first = moves(&drs.step(70 * S, &cluster, &settings));
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].to, "b");
    assert!(
        drs.step(71 * S, &cluster, &settings).is_empty(),
        "under way"
    );
    arrive(&mut cluster, &first);
    let done = drs.step(72 * S, &cluster, &settings);
    assert!(moves(&done).is_empty() && done.len() == 1, "{done:?}");
    assert!(drs.round().recommendations.is_empty());
    assert!(drs.step(200 * S, &cluster, &settings).is_empty());
}

#[test]
fn partial_automation_recommends_and_applies_when_told() {
    let (mut drs, cluster, settings) = (Drs::default(), busy(), Settings::default());
    drs.step(S, &cluster, &settings);
    assert!(drs.step(70 * S, &cluster, &settings).is_empty());
    let number = drs.round().recommendations[0].number;
    let unknown = Order::Apply(vec![number + 1]);
    assert!(drs.order(unknown, &cluster).is_err());
    let said = drs.order(Order::Apply(vec![number, number]), &cluster);
    let all = format!("will carry out {number}; `godwit drs history` tells how it went");
    assert_eq!(said, Ok(all));
    let begun = drs.step(71 * S, &cluster, &settings);
    assert_eq!(moves(&begun).len(), 1);
    let Decision::Record(_, text) = &begun[0] else {
        panic!("{begun:?}")
    };
    assert!(
        text.starts_with(&format!("carries out {number}: g")),
        "{text}"
    );
}

/// Load is measured and never the same twice: what was shown is what is applied.
#[test]
fn what_was_applied_is_carried_out_even_if_the_load_has_changed() {
    let (mut drs, mut cluster, settings) = (Drs::default(), busy(), Settings::default());
    drs.step(S, &cluster, &settings);
    let wanted = drs.round().recommendations[0].step.moves.clone();
    drs.order(Order::Apply(vec![]), &cluster).expect("is there");
    for guest in cluster.guests.values_mut() {
        guest.demand.mcpu = 100;
    }
    let begun = drs.step(400 * S, &cluster, &settings);
    assert_eq!(moves(&begun), wanted[..1], "{begun:?}");
}

#[test]
fn what_cannot_be_carried_out_yet_is_said_to_wait() {
    let (mut drs, mut cluster, settings) = (Drs::default(), busy(), Settings::default());
    drs.step(S, &cluster, &settings);
    cluster.hosts.get_mut("b").unwrap().mode = HostMode::Quiet;
    let said = drs.order(Order::Apply(vec![]), &cluster).expect("is there");
    assert!(
        said.ends_with("it waits until that is possible: b receives no guests now"),
        "{said}"
    );
    let applied = drs.step(70 * S, &cluster, &settings);
    assert!(moves(&applied).is_empty(), "{applied:?}");
    let [Decision::Record(Level::Warning, text)] = &applied[..] else {
        panic!("{applied:?}")
    };
    assert!(text.contains("not recommended any more"), "{text}");
}

#[test]
fn a_recommendation_keeps_its_number_while_it_stands() {
    let (mut drs, mut cluster, settings) = (Drs::default(), busy(), Settings::default());
    drs.step(S, &cluster, &settings);
    let before = drs.round().numbers();
    cluster.guests.get_mut("g1").unwrap().demand.mcpu = 1801;
    drs.step(100 * S, &cluster, &settings);
    assert_eq!(drs.round().numbers(), before);
}

#[test]
fn a_guest_that_failed_to_move_is_left_alone_and_others_are_tried() {
    let (mut drs, cluster, settings) = (Drs::default(), busy(), full());
    drs.step(S, &cluster, &settings);
    let first = moves(&drs.step(70 * S, &cluster, &settings));
    let failed = drs.failed(71 * S, &first[0].guest, "no route");
    assert!(matches!(&failed[..], [Decision::Record(Level::Warning, _)]));
    let second = moves(&drs.step(72 * S, &cluster, &settings));
    assert_eq!(second.len(), 1);
    assert_ne!(second[0].guest, first[0].guest);
}

#[test]
fn a_guest_may_be_kept_from_automation_or_given_to_it() {
    let mut cluster = busy();
    for name in ["g1", "g2"] {
        cluster.guests.get_mut(name).unwrap().automation = Some(Automation::Manual);
    }
    let (mut drs, settings) = (Drs::default(), full());
    drs.step(S, &cluster, &settings);
    let first = moves(&drs.step(70 * S, &cluster, &settings));
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].guest, "g3");
    let mut cluster = busy();
    cluster.guests.get_mut("g2").unwrap().automation = Some(Automation::Full);
    let (mut drs, settings) = (Drs::default(), Settings::default());
    drs.step(S, &cluster, &settings);
    let first = moves(&drs.step(70 * S, &cluster, &settings));
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].guest, "g2");
}

#[test]
fn rules_and_maintenance_wait_for_no_demand() {
    let guests = [("g1", "a", 0), ("g2", "a", 0)];
    let (mut drs, mut cluster, settings) = (Drs::default(), cluster(&["a", "b"], &guests), full());
    assert!(drs.step(S, &cluster, &settings).is_empty());
    let guests = ["g1", "g2"].map(String::from).into();
    cluster
        .rules
        .insert("apart".into(), Rule::KeepApart { guests });
    let mended = moves(&drs.step(2 * S, &cluster, &settings));
    assert_eq!(mended.len(), 1, "exactly one move");
    arrive(&mut cluster, &mended);
    drs.step(3 * S, &cluster, &settings);
    cluster.rules.clear();
    cluster.hosts.get_mut("b").unwrap().mode = HostMode::Maintenance;
    let settings = Settings {
        enforcement: crate::settings::Enforcement::Warn,
        ..Settings::default()
    };
    let emptied = moves(&drs.step(4 * S, &cluster, &settings));
    assert_eq!(emptied.len(), 1);
    assert_eq!(
        emptied[0].from, "b",
        "maintenance is not for automation to refuse"
    );
}

#[test]
fn a_guest_that_failed_to_leave_for_maintenance_is_left_alone_and_the_others_go() {
    let guests = [("g1", "a", 100), ("g2", "a", 100), ("g3", "a", 100)];
    let mut cluster = cluster(&["a", "b"], &guests);
    cluster.hosts.get_mut("a").unwrap().mode = HostMode::Maintenance;
    cluster.guests.get_mut("g3").unwrap().movable = false;
    let (mut drs, mut settings) = (Drs::default(), Settings::default());
    settings.enforcement = crate::settings::Enforcement::Warn;
    settings.drs.at_once_per_host = 1;
    let first = moves(&drs.step(S, &cluster, &settings));
    assert_eq!(first.len(), 1);
    drs.failed(2 * S, &first[0].guest, "no route");
    let second = moves(&drs.step(2 * S, &cluster, &settings));
    assert_eq!(second.len(), 1);
    assert_ne!(second[0].guest, first[0].guest);
    arrive(&mut cluster, &second);
    assert!(
        moves(&drs.step(3 * S, &cluster, &settings)).is_empty(),
        "too early"
    );
    let again = moves(&drs.step(64 * S, &cluster, &settings));
    assert_eq!(again, first);
    arrive(&mut cluster, &again);
    assert!(
        moves(&drs.step(65 * S, &cluster, &settings)).is_empty(),
        "g3 is excluded"
    );
    assert_eq!(drs.round().unresolved.len(), 1);
}

/// g1 needs 12 GiB; b has 10 free and c has 4: g2 or g3 has to leave b first, though nobody asked
/// for that at automation partial.
#[test]
fn a_guest_of_another_host_makes_room_without_being_asked() {
    let guests = [
        ("g1", "a", 0),
        ("g2", "b", 0),
        ("g3", "b", 0),
        ("g4", "c", 0),
    ];
    let mut cluster = cluster(&["a", "b", "c"], &guests);
    for (name, gib) in [("g1", 12), ("g2", 3), ("g3", 3), ("g4", 12)] {
        let size = Resources::new(0, gib * 1024);
        let guest = cluster.guests.get_mut(name).unwrap();
        (guest.configured, guest.reservation) = (size, size);
    }
    cluster.hosts.get_mut("a").unwrap().mode = HostMode::Maintenance;
    let (mut drs, mut settings) = (Drs::default(), Settings::default());
    settings.enforcement = crate::settings::Enforcement::Warn;
    let push = moves(&drs.step(S, &cluster, &settings));
    assert_eq!(push.len(), 1, "{:?}", drs.round());
    assert_eq!((&*push[0].from, &*push[0].to), ("b", "c"));
    arrive(&mut cluster, &push);
    let last = moves(&drs.step(2 * S, &cluster, &settings));
    assert_eq!(last.len(), 1);
    assert_eq!((&*last[0].guest, &*last[0].to), ("g1", "b"));
    // Whoever does not get away is named, and what is planned with it waits.
    drs.failed(3 * S, &last[0].guest, "no route");
    let alone = drs.left_alone(4 * S);
    assert_eq!(
        (&*alone[0].guest, &*alone[0].why, alone[0].for_ms),
        ("g1", "no route", 29_000)
    );
    assert!(drs.left_alone(33 * S).is_empty());
}

#[test]
fn what_an_operator_changes_asks_for_a_new_plan_at_once() {
    let mut cluster = cluster(&["a", "b"], &[("g1", "a", 100)]);
    let (mut drs, mut settings) = (Drs::default(), Settings::default());
    assert!(drs.look(S, &cluster, &settings));
    assert!(!drs.look(2 * S, &cluster, &settings));
    cluster
        .hosts
        .get_mut("a")
        .unwrap()
        .groups
        .insert("rack".into());
    assert!(drs.look(2 * S, &cluster, &settings), "a group");
    cluster.guests.get_mut("g1").unwrap().reservation.mcpu = 500;
    assert!(drs.look(2 * S, &cluster, &settings), "a reservation");
    settings.enforcement = crate::settings::Enforcement::Warn;
    assert!(drs.look(2 * S, &cluster, &settings), "admission");
    cluster.guests.get_mut("g1").unwrap().demand.mcpu = 4000;
    assert!(!drs.look(2 * S, &cluster, &settings), "load can wait");
}

#[test]
fn the_moves_of_one_step_go_one_after_the_other() {
    let guests = [("g1", "a", 0), ("g2", "a", 0), ("g3", "b", 0)];
    let (mut drs, mut cluster, settings) = (Drs::default(), cluster(&["a", "b"], &guests), full());
    let (one, two) = (["g1", "g2"], ["g2", "g3"]);
    for (name, guests) in [("r1", one), ("r2", two)] {
        let guests = guests.map(String::from).into();
        cluster
            .rules
            .insert(name.into(), Rule::KeepTogether { guests });
    }
    let mut rounds = 0;
    while rounds < 5 {
        rounds += 1;
        let begun = moves(&drs.step(rounds * S, &cluster, &settings));
        assert!(begun.len() <= 1, "{begun:?}");
        arrive(&mut cluster, &begun);
    }
    assert!(crate::rules::violations(&cluster).is_empty());
}

#[test]
fn a_new_leader_goes_on_emptying_a_host() {
    let names: Vec<String> = (0..6).map(|n| format!("g{n}")).collect();
    let guests: Vec<(&str, &str, u64)> = names.iter().map(|n| (n.as_str(), "a", 100)).collect();
    let mut cluster = cluster(&["a", "b"], &guests);
    cluster.hosts.get_mut("a").unwrap().mode = HostMode::Maintenance;
    let mut settings = Settings::default();
    settings.enforcement = crate::settings::Enforcement::Warn;
    let (mut now_us, mut ordered) = (S, Vec::new());
    while cluster
        .guests
        .values()
        .any(|guest| guest.host.as_deref() == Some("a"))
    {
        // Each leader gives one order, and dies before the answers come; of what it ordered one
        // guest arrives, and the others are on their way still.
        let mut leader = Drs::default();
        let begun = moves(&leader.step(now_us, &cluster, &settings));
        assert!((1..=2).contains(&begun.len()), "two at a time: {begun:?}");
        ordered.push(begun.len());
        arrive(&mut cluster, &begun[..1]);
        now_us += S;
        assert!(ordered.len() <= names.len(), "{ordered:?}");
    }
    assert_eq!(ordered.len(), names.len());
    assert!(Drs::default().step(now_us, &cluster, &settings).is_empty());
}
