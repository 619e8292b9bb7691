//! Admission against brute force: on small clusters every placement is tried.

use std::collections::{BTreeMap, BTreeSet};

use cluster_core::admission::Admission;
use cluster_core::model::{
    Affinity, Cluster, Desired, Guest, GuestId, Host, HostId, HostMode, Resources, Rule,
};
use cluster_core::rules::RuleBook;
use cluster_core::settings::AdmissionPolicy;
use proptest::prelude::*;

/// The definition of the module's documentation, word for word.
fn safe(cluster: &Cluster, k: usize) -> bool {
    let serving: Vec<HostId> = serving(cluster);
    let k = k.min(serving.len().saturating_sub(1));
    sets(&serving, k)
        .iter()
        .all(|failing| survives(cluster, failing))
}

fn serving(cluster: &Cluster) -> Vec<HostId> {
    let serves = |(_, host): &(&HostId, &Host)| host.mode.serves();
    cluster
        .hosts
        .iter()
        .filter(serves)
        .map(|(name, _)| name.clone())
        .collect()
}

fn sets(all: &[HostId], k: usize) -> Vec<BTreeSet<HostId>> {
    (0..1_u32 << all.len())
        .filter(|bits| bits.count_ones() as usize == k)
        .map(|bits| {
            (0..all.len())
                .filter(|i| bits >> i & 1 == 1)
                .map(|i| all[i].clone())
                .collect()
        })
        .collect()
}

fn survives(cluster: &Cluster, failing: &BTreeSet<HostId>) -> bool {
    let mut after = cluster.clone();
    let mut lost = Vec::new();
    for (name, guest) in &mut after.guests {
        let displaced = match &guest.host {
            None => guest.desired == Desired::Running && guest.protected,
            Some(host) => !cluster.hosts[host].mode.serves(),
        };
        let hit = guest
            .host
            .as_ref()
            .is_some_and(|host| failing.contains(host));
        if displaced || hit && guest.protected {
            lost.push(name.clone());
        }
        if displaced || hit {
            guest.host = None;
        }
    }
    let refuges: Vec<HostId> = serving(cluster)
        .into_iter()
        .filter(|host| !failing.contains(host))
        .collect();
    packs(&mut after, &refuges, &lost)
}

fn packs(after: &mut Cluster, refuges: &[HostId], lost: &[GuestId]) -> bool {
    let Some((first, rest)) = lost.split_first() else {
        return true;
    };
    refuges.iter().any(|host| {
        let book_rules = after.rules.clone();
        let book = RuleBook::new(&book_rules);
        let size = after.guests[first].reservation;
        let fits = size.fits(free(after, host)) && book.allows(after, first, host).is_ok();
        if !fits {
            return false;
        }
        after.guests.get_mut(first).unwrap().host = Some(host.clone());
        let found = packs(after, refuges, rest);
        after.guests.get_mut(first).unwrap().host = None;
        found
    })
}

fn free(cluster: &Cluster, host: &HostId) -> Resources {
    cluster
        .guests
        .values()
        .filter(|guest| guest.host.as_ref() == Some(host))
        .fold(cluster.hosts[host].capacity, |room, guest| {
            room.minus(guest.reservation)
        })
}

fn admits(cluster: &Cluster, name: &GuestId, k: usize) -> bool {
    cluster
        .hosts
        .iter()
        .filter(|(_, host)| host.mode.receives())
        .any(|(host, _)| {
            let rules = cluster.rules.clone();
            let book = RuleBook::new(&rules);
            let fits = cluster.guests[name].reservation.fits(free(cluster, host));
            if !fits || book.allows(cluster, name, host).is_err() {
                return false;
            }
            let mut after = cluster.clone();
            let guest = after.guests.get_mut(name).unwrap();
            (guest.host, guest.desired) = (Some(host.clone()), Desired::Running);
            safe(&after, k)
        })
}

const HOSTS: [&str; 4] = ["a", "b", "c", "d"];

fn a_host() -> impl Strategy<Value = Host> {
    (2_u64..9, 2_u64..9, 0..8_u8, any::<bool>()).prop_map(|(cpu, memory, mode, group)| Host {
        capacity: Resources::new(cpu, memory),
        mode: match mode {
            0 => HostMode::Maintenance,
            1 => HostMode::Quiet,
            _ => HostMode::Active,
        },
        groups: if group {
            BTreeSet::from(["ssd".into()])
        } else {
            BTreeSet::new()
        },
    })
}

fn a_guest() -> impl Strategy<Value = (Guest, usize)> {
    (0_u64..4, 1_u64..4, 0..12_u8, 0..9_usize).prop_map(|(cpu, memory, kind, at)| {
        let mut guest = Guest::sized(Resources::new(cpu, memory));
        guest.protected = kind > 1;
        if kind == 3 {
            guest.desired = Desired::Stopped;
        }
        (guest, at)
    })
}

fn a_rule() -> impl Strategy<Value = Rule> {
    (0..4_u8, 0..7_usize, 0..7_usize, 0..7_usize).prop_map(|(kind, x, y, z)| {
        let guests: BTreeSet<GuestId> = [x, y, z].iter().map(|i| format!("g{i}")).collect();
        let group = "ssd".to_string();
        match kind {
            0 => Rule::KeepTogether { guests },
            1 => Rule::KeepApart { guests },
            2 => Rule::GuestsToHosts {
                guests,
                group,
                affinity: Affinity::On,
                hard: true,
            },
            _ => Rule::GuestsToHosts {
                guests,
                group,
                affinity: Affinity::Off,
                hard: x != y,
            },
        }
    })
}

fn a_cluster() -> impl Strategy<Value = Cluster> {
    let hosts = prop::collection::vec(a_host(), 1..=HOSTS.len());
    let guests = prop::collection::vec(a_guest(), 0..7);
    let rules = prop::collection::vec(a_rule(), 0..3);
    (hosts, guests, rules).prop_map(|(hosts, guests, rules)| {
        let mut cluster = Cluster {
            hosts: hosts
                .into_iter()
                .zip(HOSTS)
                .map(|(host, name)| (name.into(), host))
                .collect(),
            guests: BTreeMap::new(),
            rules: rules
                .into_iter()
                .enumerate()
                .map(|(i, rule)| (format!("r{i}"), rule))
                .collect(),
        };
        for (i, (mut guest, at)) in guests.into_iter().enumerate() {
            let host = HOSTS.get(at).map(ToString::to_string);
            let host = host.filter(|host| {
                cluster.hosts.contains_key(host) && guest.reservation.fits(free(&cluster, host))
            });
            guest.host = host.filter(|_| guest.desired == Desired::Running);
            cluster.guests.insert(format!("g{i}"), guest);
        }
        cluster
    })
}

/// What may happen to a cluster between two requests.
#[derive(Debug, Clone)]
enum Change {
    Mode(usize),
    Moves(usize, usize),
    Stops(usize),
    Goes(usize),
    Comes(usize, Guest),
    Groups(usize, bool),
    Rule(Rule),
}

fn a_change() -> impl Strategy<Value = Change> {
    let (guest, host) = (0..7_usize, 0..5_usize);
    prop_oneof![
        host.clone().prop_map(Change::Mode),
        (guest.clone(), host.clone()).prop_map(|(guest, host)| Change::Moves(guest, host)),
        guest.clone().prop_map(Change::Stops),
        guest.clone().prop_map(Change::Goes),
        (guest, a_guest()).prop_map(|(at, (guest, _))| Change::Comes(at, guest)),
        (host, any::<bool>()).prop_map(|(host, member)| Change::Groups(host, member)),
        a_rule().prop_map(Change::Rule),
    ]
}

impl Change {
    /// Make it; may the books have to be begun anew?
    fn make(&self, cluster: &mut Cluster) -> bool {
        let name = |guest: &usize| format!("g{guest}");
        let host_name = |host: &usize| HOSTS.get(*host).copied().unwrap_or_default();
        match self {
            Self::Mode(host) => {
                if let Some(host) = cluster.hosts.get_mut(host_name(host)) {
                    host.mode = match host.mode {
                        HostMode::Active => HostMode::Maintenance,
                        _ => HostMode::Active,
                    };
                }
            }
            Self::Moves(guest, host) => {
                let target = cluster.hosts.keys().nth(*host).cloned();
                if let (Some(spec), Some(target)) = (cluster.guests.get_mut(&name(guest)), target) {
                    spec.host = Some(target);
                    spec.desired = Desired::Running;
                }
            }
            Self::Stops(guest) => {
                if let Some(spec) = cluster.guests.get_mut(&name(guest)) {
                    spec.host = None;
                    spec.desired = Desired::Stopped;
                }
            }
            Self::Goes(guest) => {
                cluster.guests.remove(&name(guest));
            }
            Self::Comes(at, guest) => {
                cluster.guests.insert(name(at), guest.clone());
            }
            Self::Groups(host, member) => {
                if let Some(host) = cluster.hosts.get_mut(host_name(host)) {
                    match member {
                        true => host.groups.insert("ssd".into()),
                        false => host.groups.remove("ssd"),
                    };
                }
            }
            Self::Rule(rule) => {
                cluster.rules.insert("r8".into(), rule.clone());
            }
        }
        matches!(self, Self::Groups(..) | Self::Rule(_))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn the_verdict_on_the_present_state_is_brute_forces(cluster in a_cluster(), k in 0_u32..4) {
        let mut admission = Admission::new(&cluster, AdmissionPolicy::TolerateHostFailures(k));
        let verdict = admission.safe();
        prop_assert_eq!(verdict.is_ok(), safe(&cluster, k as usize), "{:?}", verdict);
        if let Err(refusal) = verdict {
            prop_assert!(refusal.proved);
        }
    }

    #[test]
    fn the_verdict_on_a_start_is_brute_forces(
        cluster in a_cluster(), (guest, _) in a_guest(), k in 0_u32..4, rule in a_rule(),
    ) {
        let mut cluster = cluster;
        let name = GuestId::from("g6");
        let asleep = Guest { desired: Desired::Stopped, ..guest.clone() };
        cluster.guests.insert(name.clone(), asleep);
        cluster.rules.insert("r9".into(), rule);
        let mut admission = Admission::new(&cluster, AdmissionPolicy::TolerateHostFailures(k));
        let before = admission.safe().is_ok();
        let verdict = admission.may_start(&name, &guest);
        prop_assert_eq!(verdict.is_ok(), admits(&cluster, &name, k as usize), "{:?}", verdict);
        prop_assert_eq!(admission.safe().is_ok(), before, "asking changed something");
        if let Ok(admitted) = verdict {
            let started = cluster.guests.get_mut(&name).unwrap();
            (started.host, started.desired) = (Some(admitted.host), Desired::Running);
            prop_assert!(safe(&cluster, k as usize));
        }
    }

    #[test]
    fn following_a_change_is_as_good_as_new_books(
        before in a_cluster(), changes in prop::collection::vec(a_change(), 1..6),
        (guest, _) in a_guest(), k in 0_u32..3,
    ) {
        let mut policy = AdmissionPolicy::TolerateHostFailures(1);
        let mut admission = Admission::new(&before, policy);
        let mut now = before;
        for change in changes {
            let _ = admission.may_start(&"asked".into(), &guest);
            let needs_new_books = change.make(&mut now);
            policy = AdmissionPolicy::TolerateHostFailures(k);
            let mut fresh = Admission::new(&now, policy);
            if !admission.follow(&now, policy) {
                prop_assert!(needs_new_books, "{change:?}");
                admission = Admission::new(&now, policy);
            }
            prop_assert_eq!(admission.safe().is_ok(), fresh.safe().is_ok());
            let asked = [GuestId::from("g1"), "asked".into()];
            for name in asked {
                let verdict = |books: &mut Admission| books.may_start(&name, &guest).is_ok();
                prop_assert_eq!(verdict(&mut admission), verdict(&mut fresh), "{}", name);
            }
        }
    }

    #[test]
    fn the_reserve_is_what_brute_force_can_add(cluster in a_cluster(), memory in 1_u64..4) {
        // Greedy in the admission's own order, so an upper bound is all that can be asked:
        // the last one counted was admitted, the next one was not.
        let size = Resources::new(0, memory);
        let mut admission = Admission::new(&cluster, AdmissionPolicy::TolerateHostFailures(1));
        let reserve = admission.reserve(size);
        let mut grown = cluster.clone();
        let mut again = Admission::new(&cluster, AdmissionPolicy::TolerateHostFailures(1));
        for i in 0..reserve.fits {
            let (name, guest) = (format!("x{i}"), Guest::sized(size));
            let admitted = again.start(&name, &guest).unwrap();
            grown.guests.insert(name, Guest { host: Some(admitted.host), ..guest });
        }
        prop_assert!(reserve.fits == 0 || safe(&grown, 1));
        let asleep = Guest { desired: Desired::Stopped, ..Guest::sized(size) };
        grown.guests.insert("y".into(), asleep);
        prop_assert!(!admits(&grown, &"y".into(), 1));
    }
}

#[test]
fn a_share_is_kept_free_to_the_last_mebibyte() {
    let host = Host {
        capacity: Resources::new(10_000, 10_000),
        ..Host::default()
    };
    let cluster = Cluster {
        hosts: ["a", "b"].map(|name| (name.into(), host.clone())).into(),
        ..Cluster::default()
    };
    let mut admission = Admission::new(&cluster, AdmissionPolicy::ReservePercent(25));
    let guest = |memory_mib| Guest::sized(Resources::new(100, memory_mib));
    assert!(admission.start(&"one".into(), &guest(8000)).is_ok());
    let refusal = admission
        .may_start(&"two".into(), &guest(7001))
        .unwrap_err();
    assert!(
        refusal.proved && !refusal.remedies.is_empty(),
        "{refusal:?}"
    );
    assert!(admission.start(&"two".into(), &guest(7000)).is_ok());
    assert!(admission.may_start(&"three".into(), &guest(1)).is_err());
    assert!(admission.safe().is_ok());
}
