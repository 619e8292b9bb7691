//! Is there any placement that obeys these rules? Found by trying, where few guests are bound.
//!
//! Rules that share a guest or a host group are looked at together; a group of hosts is scarce
//! for all that are bound to it. Hosts that are alike are tried once.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::cmp::Reverse;

use super::{Contradiction, needs};
use crate::model::{Cluster, GuestId, Resources, Rule};
use crate::rules::host_allowed;

/// Most sets of guests, each kept together, for which placements are tried.
const COMPANIES_MAX: usize = 12;
/// Most steps of a search; where they do not suffice nothing is said.
const STEPS_MAX: u32 = 200_000;

pub(super) type Rules<'a> = BTreeMap<&'a str, &'a Rule>;

/// Hard rules in sets that have nothing to do with each other.
pub(super) fn connected(cluster: &Cluster) -> Vec<Rules<'_>> {
    let mut sets: Vec<Rules<'_>> = Vec::new();
    for (name, rule) in cluster.rules.iter().filter(|(_, rule)| is_hard(rule)) {
        let mut joined = Rules::from([(name.as_str(), rule)]);
        sets.retain_mut(|set| {
            let meets = set.values().any(|other| meet(rule, other));
            if meets {
                joined.append(set);
            }
            !meets
        });
        sets.push(joined);
    }
    sets
}

fn is_hard(rule: &Rule) -> bool {
    !matches!(rule, Rule::GuestsToHosts { hard: false, .. })
}

fn meet(one: &Rule, other: &Rule) -> bool {
    let group = |rule: &Rule| match rule {
        Rule::GuestsToHosts { group, .. } => Some(group.clone()),
        _ => None,
    };
    let same_group = group(one).is_some() && group(one) == group(other);
    same_group || !one.guests().is_disjoint(other.guests())
}

/// The rules of a set that cannot all be obeyed: as few as show it.
pub(super) fn contradiction(cluster: &Cluster, mut rules: Rules<'_>) -> Option<Contradiction> {
    let impossible = |rules: &Rules<'_>| placeable(cluster, rules) == Some(false);
    if cluster.hosts.is_empty() || !impossible(&rules) {
        return None;
    }
    for name in rules.keys().copied().collect::<Vec<_>>() {
        let mut fewer = rules.clone();
        fewer.remove(name);
        if impossible(&fewer) {
            rules = fewer;
        }
    }
    let guests: BTreeSet<&GuestId> = rules.values().flat_map(|rule| rule.guests()).collect();
    let guests: Vec<&str> = guests.into_iter().map(String::as_str).collect();
    Some(Contradiction {
        why: format!(
            "wherever {} are placed, one of these rules is broken or a host is given more than it has",
            guests.join(", ")
        ),
        rules: rules.keys().map(ToString::to_string).collect(),
    })
}

/// Guests that are placed as one.
struct Company {
    guests: BTreeSet<GuestId>,
    needs: Resources,
    /// By host.
    allowed: Vec<bool>,
    /// Those it must not share a host with; itself where its own guests must not.
    apart: BTreeSet<usize>,
}

/// A host while guests are placed.
struct Place {
    free: Resources,
    /// Hosts of a kind have the same size and are allowed to the same companies.
    kind: usize,
    holds: Vec<usize>,
}

/// Can all guests of these rules be placed so that the rules are obeyed and no host is given more
/// than it has? `None`: they are too many to tell.
fn placeable(cluster: &Cluster, rules: &Rules<'_>) -> Option<bool> {
    let mut companies = companies(cluster, rules);
    if companies.len() > COMPANIES_MAX {
        return None;
    }
    // The choosiest first, then the largest: what cannot be shows early.
    companies.sort_by_key(|company| {
        let choices = company.allowed.iter().filter(|allowed| **allowed).count();
        (choices, Reverse(company.needs.memory_mib))
    });
    keep_apart(&mut companies, rules);
    let mut kinds: BTreeMap<(Resources, Vec<bool>), usize> = BTreeMap::new();
    let places = cluster.hosts.values().enumerate().map(|(host, spec)| {
        let allowed = companies.iter().map(|company| company.allowed[host]);
        let next = kinds.len();
        Place {
            free: spec.capacity,
            kind: *kinds
                .entry((spec.capacity, allowed.collect()))
                .or_insert(next),
            holds: Vec::new(),
        }
    });
    let mut search = Search {
        places: places.collect(),
        companies,
        steps: 0,
    };
    search.place(0)
}

fn companies(cluster: &Cluster, rules: &Rules<'_>) -> Vec<Company> {
    let sets = super::companies(rules.iter().map(|(name, rule)| (*name, *rule)));
    let company = |guests: BTreeSet<GuestId>| {
        let binding: Vec<(&str, &Rule)> = rules
            .iter()
            .filter(|(_, rule)| !rule.guests().is_disjoint(&guests))
            .map(|(name, rule)| (*name, *rule))
            .collect();
        let hosts = cluster.hosts.values();
        Company {
            needs: needs(cluster, &guests),
            allowed: hosts.map(|host| host_allowed(&binding, host)).collect(),
            apart: BTreeSet::new(),
            guests,
        }
    };
    sets.into_iter().map(|set| company(set.guests)).collect()
}

fn keep_apart(companies: &mut [Company], rules: &Rules<'_>) {
    for rule in rules.values() {
        let Rule::KeepApart { guests } = rule else {
            continue;
        };
        let of: Vec<usize> = guests
            .iter()
            .filter_map(|guest| {
                companies
                    .iter()
                    .position(|company| company.guests.contains(guest))
            })
            .collect();
        for (at, one) in of.iter().enumerate() {
            let others = of.iter().enumerate().filter(|(other, _)| *other != at);
            let others: Vec<usize> = others.map(|(_, other)| *other).collect();
            companies[*one].apart.extend(others);
        }
    }
}

struct Search {
    companies: Vec<Company>,
    places: Vec<Place>,
    steps: u32,
}

impl Search {
    /// Can this company and those after it be placed beside those before it?
    fn place(&mut self, one: usize) -> Option<bool> {
        let Some(company) = self.companies.get(one) else {
            return Some(true);
        };
        if company.apart.contains(&one) {
            return Some(false);
        }
        let needs = company.needs;
        let mut tried_empty = vec![false; self.places.len()];
        for host in 0..self.places.len() {
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return None;
            }
            let (company, place) = (&self.companies[one], &self.places[host]);
            let alike =
                place.holds.is_empty() && core::mem::replace(&mut tried_empty[place.kind], true);
            let meets = place
                .holds
                .iter()
                .any(|other| company.apart.contains(other));
            if alike || meets || !company.allowed[host] || !needs.fits(place.free) {
                continue;
            }
            let free = place.free;
            self.places[host].free = free.minus(needs);
            self.places[host].holds.push(one);
            let found = self.place(one + 1);
            self.places[host].free = free;
            self.places[host].holds.pop();
            if found != Some(false) {
                return found;
            }
        }
        Some(false)
    }
}
