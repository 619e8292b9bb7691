//! Which hosts may a guest run on, given where the others are?
//!
//! Keep-together, keep-apart and hard guest-host rules bind; soft guest-host rules cost.

mod contradictions;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::model::{Affinity, Cluster, Guest, GuestId, Host, HostId, Rule};

pub use contradictions::{Contradiction, contradictions, contradicts};

/// The rules, found by the guests they bind.
#[derive(Debug, Clone, Default)]
pub struct RuleBook<'a> {
    by_guest: BTreeMap<&'a str, Vec<(&'a str, &'a Rule)>>,
}

/// A rule that a place for a guest, or the present state, breaks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Broken {
    /// The rule's name.
    pub rule: String,
    /// How it is broken.
    pub why: String,
    /// Does it bind, or only cost?
    pub hard: bool,
}

impl Rule {
    /// The guests it speaks of.
    pub fn guests(&self) -> &alloc::collections::BTreeSet<GuestId> {
        match self {
            Self::KeepTogether { guests }
            | Self::KeepApart { guests }
            | Self::GuestsToHosts { guests, .. } => guests,
        }
    }
}

impl<'a> RuleBook<'a> {
    /// Indexes the rules.
    pub fn new(rules: &'a BTreeMap<String, Rule>) -> Self {
        let mut by_guest: BTreeMap<&str, Vec<(&str, &Rule)>> = BTreeMap::new();
        for (name, rule) in rules {
            for guest in rule.guests() {
                by_guest.entry(guest).or_default().push((name, rule));
            }
        }
        Self { by_guest }
    }

    /// The rules that speak of a guest.
    pub fn of(&self, guest: &str) -> &[(&'a str, &'a Rule)] {
        self.by_guest.get(guest).map_or(&[], Vec::as_slice)
    }

    /// What running `guest` on `host` would break, the others staying where they are.
    pub fn broken_by(&self, cluster: &Cluster, guest: &GuestId, host: &HostId) -> Vec<Broken> {
        self.of(guest)
            .iter()
            .filter_map(|(name, rule)| breaks(cluster, name, rule, guest, host))
            .collect()
    }

    /// May `guest` run on `host` as far as hard rules go? Otherwise the first that forbids it.
    pub fn allows(&self, cluster: &Cluster, guest: &GuestId, host: &HostId) -> Result<(), Broken> {
        self.of(guest)
            .iter()
            .filter_map(|(name, rule)| breaks(cluster, name, rule, guest, host))
            .find(|broken| broken.hard)
            .map_or(Ok(()), Err)
    }
}

fn breaks(
    cluster: &Cluster,
    name: &str,
    rule: &Rule,
    guest: &GuestId,
    host: &HostId,
) -> Option<Broken> {
    let fellow_on = |wanted: &dyn Fn(&HostId) -> bool| {
        rule.guests()
            .iter()
            .filter(|other| *other != guest)
            .find_map(|other| {
                let at = cluster.guests.get(other)?.host.as_ref()?;
                wanted(at).then_some((other, at))
            })
    };
    let (hard, why) = match rule {
        Rule::KeepTogether { .. } => {
            let (other, at) = fellow_on(&|at| at != host)?;
            (
                true,
                format!("{guest} must run together with {other}, which is on {at}"),
            )
        }
        Rule::KeepApart { .. } => {
            let (other, _) = fellow_on(&|at| at == host)?;
            (true, format!("{guest} must not share {host} with {other}"))
        }
        Rule::GuestsToHosts {
            group,
            affinity,
            hard,
            ..
        } => {
            let inside = cluster
                .hosts
                .get(host)
                .is_some_and(|h| h.groups.contains(group));
            if inside == (*affinity == Affinity::On) {
                return None;
            }
            let word = if *hard { "must" } else { "should" };
            let side = if *affinity == Affinity::On {
                "on"
            } else {
                "off"
            };
            (
                *hard,
                format!("{guest} {word} run {side} the hosts of group {group}"),
            )
        }
    };
    Some(Broken {
        rule: name.into(),
        why,
        hard,
    })
}

/// Every rule the present state breaks, once per guest bound.
pub fn violations(cluster: &Cluster) -> Vec<(GuestId, Broken)> {
    let book = RuleBook::new(&cluster.rules);
    placed(cluster)
        .flat_map(|(name, _, host)| {
            book.broken_by(cluster, name, host)
                .into_iter()
                .map(|broken| (name.clone(), broken))
        })
        .collect()
}

fn placed(cluster: &Cluster) -> impl Iterator<Item = (&GuestId, &Guest, &HostId)> {
    cluster
        .guests
        .iter()
        .filter_map(|(name, guest)| Some((name, guest, guest.host.as_ref()?)))
}

/// May the guest run on this host by hard guest-host rules alone, wherever others are?
pub fn host_allowed(rules: &[(&str, &Rule)], host: &Host) -> bool {
    rules.iter().all(|(_, rule)| match rule {
        Rule::GuestsToHosts {
            group,
            affinity,
            hard: true,
            ..
        } => host.groups.contains(group) == (*affinity == Affinity::On),
        _ => true,
    })
}
