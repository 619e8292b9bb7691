//! The best feasible host for one guest: by room, rules and spread, with a reason.
//!
//! Feasible: the host receives guests, the reservation fits beside what is there, hard
//! rules allow it. Best: fewest soft rules broken, then the lowest load afterwards, load
//! being the larger of CPU and memory in thousandths of the capacity, and of what is
//! reserved and what is wanted. Ties go to the first name.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::model::{Cluster, GuestId, HostId, HostMode, Resources, Rule};
use crate::rules::RuleBook;

/// What is used of a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Use {
    /// By reservations.
    pub reserved: Resources,
    /// By demand.
    pub wanted: Resources,
}

/// What is used of every host.
pub type Usage = BTreeMap<HostId, Use>;

/// What the guests use where they are.
pub fn usage(cluster: &Cluster) -> Usage {
    let mut usage: Usage = cluster
        .hosts
        .keys()
        .map(|name| (name.clone(), Use::default()))
        .collect();
    for guest in cluster.guests.values() {
        if let Some(at) = guest.host.as_ref().and_then(|host| usage.get_mut(host)) {
            at.reserved = at.reserved.plus(guest.reservation);
            at.wanted = at.wanted.plus(guest.demand);
        }
    }
    usage
}

/// A host for a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Where.
    pub host: HostId,
    /// Why there, in words and numbers.
    pub because: String,
}

/// Why no host will do, counted by reason, worst first named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nowhere {
    /// Was it only for want of room (and not for rules or hosts that receive nothing)?
    pub for_room: bool,
    /// In words.
    pub because: String,
}

/// The load of a host in thousandths of its capacity.
pub fn load_permille(used: Use, capacity: Resources) -> u64 {
    let part = |used: u64, of: u64| used.saturating_mul(1000) / of.max(1);
    [used.reserved, used.wanted]
        .iter()
        .map(|amount| {
            part(amount.mcpu, capacity.mcpu).max(part(amount.memory_mib, capacity.memory_mib))
        })
        .max()
        .unwrap_or(0)
}

/// Finds the best host for `guest` outside `avoid`.
pub fn place(
    cluster: &Cluster,
    book: &RuleBook<'_>,
    usage: &Usage,
    guest: &GuestId,
    avoid: &BTreeSet<HostId>,
) -> Result<Choice, Nowhere> {
    let Some(spec) = cluster.guests.get(guest) else {
        return Err(Nowhere {
            for_room: false,
            because: format!("there is no guest {guest}"),
        });
    };
    // Guests to be kept together come one after the other; the first must leave room for all.
    let company = company(cluster, book, guest);
    let mut reasons: Vec<String> = Vec::new();
    let mut for_room = true;
    let mut best: Option<((usize, u64), &HostId)> = None;
    for (name, host) in &cluster.hosts {
        if !host.mode.receives() || avoid.contains(name) {
            let why = if avoid.contains(name) {
                "is left out for now"
            } else {
                mode_word(host.mode)
            };
            reasons.push(format!("{name} {why}"));
            continue;
        }
        let broken = book.broken_by(cluster, guest, name);
        if let Some(broken) = broken.iter().find(|broken| broken.hard) {
            for_room = false;
            reasons.push(format!("{name}: rule {}: {}", broken.rule, broken.why));
            continue;
        }
        let used = usage.get(name).copied().unwrap_or_default();
        let free = host.capacity.minus(used.reserved);
        if !spec.reservation.plus(company).fits(free) {
            reasons.push(format!("{name} has {free} free"));
            continue;
        }
        let after = Use {
            reserved: used.reserved.plus(spec.reservation),
            wanted: used.wanted.plus(spec.demand),
        };
        let key = (broken.len(), load_permille(after, host.capacity));
        if best.is_none_or(|(least, _)| key < least) {
            best = Some((key, name));
        }
    }
    match best {
        Some(((soft, load), host)) => Ok(Choice {
            host: host.clone(),
            because: chosen(host, load, soft, &reasons),
        }),
        None => Err(Nowhere {
            for_room,
            because: nowhere(spec.reservation.plus(company), &reasons),
        }),
    }
}

/// What the fellows of `guest` that have no host yet will need beside it.
fn company(cluster: &Cluster, book: &RuleBook<'_>, guest: &GuestId) -> Resources {
    let fellows: BTreeSet<&GuestId> = book
        .of(guest)
        .iter()
        .filter_map(|(_, rule)| match rule {
            Rule::KeepTogether { guests } => Some(guests),
            _ => None,
        })
        .flatten()
        .filter(|other| *other != guest)
        .collect();
    fellows
        .into_iter()
        .filter_map(|other| cluster.guests.get(other))
        .filter(|other| other.host.is_none() && other.takes_room())
        .fold(Resources::default(), |sum, other| {
            sum.plus(other.reservation)
        })
}

fn mode_word(mode: HostMode) -> &'static str {
    match mode {
        HostMode::Active => "is active",
        HostMode::Quiet => "receives none for now",
        HostMode::Maintenance => "is in maintenance",
        HostMode::Lost => "is lost",
    }
}

fn chosen(host: &str, load: u64, soft: usize, reasons: &[String]) -> String {
    let mut because = format!(
        "{host} will be the least loaded at {}.{} %",
        load / 10,
        load % 10
    );
    if soft > 0 {
        because = format!("{because}, though {soft} soft rules are broken");
    }
    if !reasons.is_empty() {
        because = format!("{because}; {} would not do", hosts(reasons.len()));
    }
    because
}

fn hosts(count: usize) -> String {
    match count {
        1 => "1 host".into(),
        many => format!("{many} hosts"),
    }
}

/// How many hosts are named in a refusal.
const NAMED: usize = 4;

fn nowhere(needs: Resources, reasons: &[String]) -> String {
    let mut because = format!("it needs {needs}");
    for reason in reasons.iter().take(NAMED) {
        because = format!("{because}; {reason}");
    }
    if reasons.len() > NAMED {
        because = format!("{because}; and {} more", hosts(reasons.len() - NAMED));
    }
    because
}
