//! Rules that cannot all be obeyed, found before a guest suffers from them.
//!
//! Found are: guests kept together that are kept apart; guests (with all that are kept
//! together with them) for which hard rules leave no host, or none large enough; more guests
//! kept apart than there are hosts for them, each on its own. Together and apart at once over
//! several rules can hide deeper contradictions; those show when a placement is refused.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::host_allowed;
use crate::model::{Cluster, GuestId, HostId, Resources, Rule};

/// Rules that cannot all be obeyed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contradiction {
    /// Their names.
    pub rules: BTreeSet<String>,
    /// Why not, in words.
    pub why: String,
}

/// What would contradict if this rule were added (or replaced the one of that name).
pub fn contradicts(cluster: &Cluster, name: &str, rule: &Rule) -> Vec<Contradiction> {
    let before = contradictions(cluster);
    let mut with = cluster.clone();
    with.rules.insert(name.to_string(), rule.clone());
    let mut found = contradictions(&with);
    found.retain(|one| !before.contains(one));
    found
}

/// Every contradiction among the rules of the cluster.
pub fn contradictions(cluster: &Cluster) -> Vec<Contradiction> {
    let companies = companies(cluster);
    let mut found: Vec<Contradiction> = Vec::new();
    for (name, rule) in &cluster.rules {
        found.extend(senseless(cluster, name, rule));
    }
    for company in &companies {
        found.extend(torn(cluster, company));
        found.extend(homeless(cluster, company));
    }
    for (name, rule) in &cluster.rules {
        if let Rule::KeepApart { guests } = rule {
            found.extend(crowded(cluster, name, guests, &companies));
        }
    }
    found
}

/// Guests that keep-together rules bind to one host, and those rules.
#[derive(Default)]
struct Company {
    guests: BTreeSet<GuestId>,
    rules: BTreeSet<String>,
}

fn companies(cluster: &Cluster) -> Vec<Company> {
    let mut companies: Vec<Company> = Vec::new();
    let bound = cluster.rules.values().flat_map(Rule::guests).cloned();
    for guest in bound.collect::<BTreeSet<_>>() {
        companies.push(Company {
            guests: BTreeSet::from([guest]),
            rules: BTreeSet::new(),
        });
    }
    for (name, rule) in &cluster.rules {
        let Rule::KeepTogether { guests } = rule else {
            continue;
        };
        let mut joined = Company {
            rules: BTreeSet::from([name.clone()]),
            ..Company::default()
        };
        companies.retain_mut(|company| {
            let meets = !company.guests.is_disjoint(guests);
            if meets {
                joined.guests.append(&mut company.guests);
                joined.rules.append(&mut company.rules);
            }
            !meets
        });
        companies.push(joined);
    }
    companies
}

fn senseless(cluster: &Cluster, name: &str, rule: &Rule) -> Option<Contradiction> {
    let known = |guest: &&GuestId| !cluster.guests.contains_key(*guest);
    let why = if let Some(guest) = rule.guests().iter().find(known) {
        format!("it names {guest}, which does not exist")
    } else if rule.guests().len() < 2 && !matches!(rule, Rule::GuestsToHosts { .. }) {
        "it needs at least two guests".to_string()
    } else {
        return None;
    };
    Some(Contradiction {
        rules: BTreeSet::from([name.to_string()]),
        why,
    })
}

/// Together by some rules, apart by another.
fn torn<'a>(
    cluster: &'a Cluster,
    company: &'a Company,
) -> impl Iterator<Item = Contradiction> + 'a {
    cluster.rules.iter().filter_map(|(name, rule)| {
        let Rule::KeepApart { guests } = rule else {
            return None;
        };
        let both: Vec<&str> = guests
            .intersection(&company.guests)
            .map(String::as_str)
            .collect();
        (both.len() > 1).then(|| Contradiction {
            rules: company.rules.iter().chain([name]).cloned().collect(),
            why: format!("{} are kept together and kept apart", both.join(" and ")),
        })
    })
}

/// The hosts on which guest-host rules allow all of these guests, and the rules that say so.
fn allowed(cluster: &Cluster, guests: &BTreeSet<GuestId>) -> (BTreeSet<HostId>, BTreeSet<String>) {
    let binding: Vec<(&str, &Rule)> = cluster
        .rules
        .iter()
        .filter(|(_, rule)| matches!(rule, Rule::GuestsToHosts { hard: true, .. }))
        .filter(|(_, rule)| !rule.guests().is_disjoint(guests))
        .map(|(name, rule)| (name.as_str(), rule))
        .collect();
    let hosts = cluster
        .hosts
        .iter()
        .filter(|(_, host)| host_allowed(&binding, host));
    let names = binding.iter().map(|(name, _)| (*name).to_string());
    (
        hosts.map(|(name, _)| name.clone()).collect(),
        names.collect(),
    )
}

/// No host is allowed, or none is large enough.
fn homeless(cluster: &Cluster, company: &Company) -> Option<Contradiction> {
    let (hosts, names) = allowed(cluster, &company.guests);
    let who = company
        .guests
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    let rules: BTreeSet<String> = names
        .into_iter()
        .chain(company.rules.iter().cloned())
        .collect();
    if rules.is_empty() || cluster.hosts.is_empty() {
        return None;
    }
    let needs = company
        .guests
        .iter()
        .filter_map(|guest| cluster.guests.get(guest))
        .fold(Resources::default(), |sum, guest| {
            sum.plus(guest.reservation)
        });
    let why = if hosts.is_empty() {
        format!("no host is left for {who}")
    } else if hosts
        .iter()
        .any(|host| needs.fits(cluster.hosts[host].capacity))
    {
        return None;
    } else {
        format!("{who} reserve {needs} together, more than any host that is left for them has")
    };
    Some(Contradiction { rules, why })
}

/// More guests kept apart than hosts for them.
fn crowded(
    cluster: &Cluster,
    name: &str,
    guests: &BTreeSet<GuestId>,
    companies: &[Company],
) -> Option<Contradiction> {
    let of = |guest: &GuestId| {
        companies
            .iter()
            .find(|company| company.guests.contains(guest))
    };
    let mut rules = BTreeSet::from([name.to_string()]);
    let mut choices: Vec<BTreeSet<HostId>> = Vec::new();
    for guest in guests {
        let (hosts, names) = of(guest).map(|company| allowed(cluster, &company.guests))?;
        rules.extend(names);
        choices.push(hosts);
    }
    let mut taken: BTreeMap<&HostId, usize> = BTreeMap::new();
    let housed = (0..choices.len())
        .filter(|guest| house(*guest, &choices, &mut taken, &mut BTreeSet::new()))
        .count();
    (housed < guests.len()).then(|| Contradiction {
        rules,
        why: format!(
            "{} guests need a host each, and there are hosts for only {housed} of them",
            guests.len()
        ),
    })
}

/// Finds a host for the guest, moving those housed before where that helps.
fn house<'a>(
    guest: usize,
    choices: &'a [BTreeSet<HostId>],
    taken: &mut BTreeMap<&'a HostId, usize>,
    seen: &mut BTreeSet<&'a HostId>,
) -> bool {
    for host in &choices[guest] {
        if !seen.insert(host) {
            continue;
        }
        let free = match taken.get(host).copied() {
            None => true,
            Some(other) => house(other, choices, taken, seen),
        };
        if free {
            taken.insert(host, guest);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
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

    fn a_rule() -> impl Strategy<Value = Rule> {
        (0..4_u8, 0..4_usize, 0..4_usize, 0..4_usize).prop_map(|(kind, x, y, z)| match kind {
            0 => together(&[x, y]),
            1 => apart(&[x, y, z]),
            2 => on_ssd(&[x], Affinity::On),
            _ => on_ssd(&[x, y], Affinity::Off),
        })
    }

    proptest! {
        /// What is called a contradiction is one: no placement obeys all rules.
        #[test]
        fn no_false_alarm(rules in prop::collection::vec(a_rule(), 1..4)) {
            let mut cluster = cluster(3, 4);
            for (i, rule) in rules.into_iter().enumerate() {
                if rule.guests().len() > 1 || matches!(rule, Rule::GuestsToHosts { .. }) {
                    cluster.rules.insert(format!("r{i}"), rule);
                }
            }
            let found = contradictions(&cluster);
            let obeyed = (0..81_usize).any(|code| {
                for (i, guest) in cluster.guests.values_mut().enumerate() {
                    guest.host = Some(format!("h{}", code / 3_usize.pow(i as u32) % 3));
                }
                let room = crate::placement::usage(&cluster);
                violations(&cluster).is_empty()
                    && room.iter().all(|(h, used)| used.reserved.fits(cluster.hosts[h].capacity))
            });
            prop_assert!(found.is_empty() || !obeyed, "{found:?}");
        }
    }
}
