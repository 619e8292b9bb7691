//! Rules that cannot all be obeyed, found before a guest suffers from them.
//!
//! Found with a reason of their own are: guests kept together that are kept apart; guests (with
//! all that are kept together with them) for which hard rules leave no host, or none large
//! enough; more guests kept apart by one rule than there are hosts for them; guests that
//! together need more than the hosts that are left for them have. What is deeper than that is
//! found by trying every placement ([`exact`]), for rules that bind few guests with each other.
//! For more, it shows when a placement is refused.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

mod exact;
#[cfg(test)]
mod tests;

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
    let rules = cluster.rules.iter();
    let companies = companies(rules.map(|(name, rule)| (name.as_str(), rule)));
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
    for one in overbooked(cluster, &companies) {
        if !found.iter().any(|known| known.rules.is_subset(&one.rules)) {
            found.push(one);
        }
    }
    for rules in exact::connected(cluster) {
        let said = |one: &Contradiction| one.rules.iter().any(|name| rules.contains_key(&**name));
        if !found.iter().any(said) {
            found.extend(exact::contradiction(cluster, rules));
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

fn companies<'a>(rules: impl Iterator<Item = (&'a str, &'a Rule)> + Clone) -> Vec<Company> {
    let mut companies: Vec<Company> = Vec::new();
    let bound = rules.clone().flat_map(|(_, rule)| rule.guests()).cloned();
    for guest in bound.collect::<BTreeSet<_>>() {
        companies.push(Company {
            guests: BTreeSet::from([guest]),
            rules: BTreeSet::new(),
        });
    }
    for (name, rule) in rules {
        let Rule::KeepTogether { guests } = rule else {
            continue;
        };
        let mut joined = Company {
            rules: BTreeSet::from([name.to_string()]),
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

/// What these guests need at the same time. What shall not run needs no room.
fn needs(cluster: &Cluster, guests: &BTreeSet<GuestId>) -> Resources {
    let guests = guests.iter().filter_map(|guest| cluster.guests.get(guest));
    guests
        .filter(|guest| guest.takes_room())
        .fold(Resources::default(), |sum, guest| {
            sum.plus(guest.reservation)
        })
}

/// Guests that are bound to the same few hosts and need more than these have.
fn overbooked(cluster: &Cluster, companies: &[Company]) -> Vec<Contradiction> {
    let bound: Vec<_> = companies
        .iter()
        .map(|company| (company, allowed(cluster, &company.guests)))
        .filter(|(_, (hosts, names))| !hosts.is_empty() && !names.is_empty())
        .collect();
    let mut found: Vec<Contradiction> = Vec::new();
    for (_, (hosts, _)) in &bound {
        let inside = bound
            .iter()
            .filter(|(_, (other, _))| other.is_subset(hosts));
        let (mut rules, mut guests) = (BTreeSet::new(), BTreeSet::new());
        for (company, (_, names)) in inside {
            rules.extend(company.rules.iter().chain(names).cloned());
            guests.extend(company.guests.iter().cloned());
        }
        let sizes = hosts.iter().map(|host| cluster.hosts[host].capacity);
        let all = sizes.fold(Resources::default(), Resources::plus);
        let needs = needs(cluster, &guests);
        let known = found.iter().any(|one| one.rules == rules);
        if guests.len() > 1 && !needs.fits(all) && !known {
            let hosts = hosts
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ");
            let guests = guests
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ");
            let why = format!("{guests} reserve {needs} together, and {hosts} have {all}");
            found.push(Contradiction { rules, why });
        }
    }
    found
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
        let company = of(guest)?;
        let (hosts, names) = allowed(cluster, &company.guests);
        if !names.is_empty() {
            rules.extend(company.rules.iter().cloned().chain(names));
        }
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
