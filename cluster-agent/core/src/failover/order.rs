//! Who starts before whom: by priority, size and dependencies.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;

use super::Situation;
use crate::dependencies::depends_on;
use crate::messages::GuestState;
use crate::model::{Cluster, Desired, GuestId, Priority, Readiness, Resources};
use crate::owners::{Loss, Whereabouts};

/// Longest chain along which a waiting guest lends its priority.
const MAX_CHAIN: usize = 16;

/// What the guest has to wait for, if it has to: it has been lost since `since_us`.
pub(super) fn waits_for(
    now_us: u64,
    since_us: u64,
    guest: &GuestId,
    at: &Situation<'_>,
) -> Option<String> {
    let patience = at.settings.timings.dependency_patience_ms * 1000;
    if now_us >= since_us + patience {
        return None;
    }
    at.cluster.guests[guest]
        .after
        .iter()
        .find(|(other, until)| {
            at.cluster
                .guests
                .get(*other)
                .is_some_and(|o| o.desired == Desired::Running)
                && !depends_on(&at.cluster.guests, other, guest)
                && !ready(other, **until, at)
        })
        .map(|(other, until)| match until {
            Readiness::Running => format!("it starts after {other} runs"),
            Readiness::Heartbeat => format!("it starts after {other} has said that it lives"),
            Readiness::DelayMs(ms) => format!("it starts after {other} has run for {ms} ms"),
        })
}

fn ready(guest: &GuestId, until: Readiness, at: &Situation<'_>) -> bool {
    if !matches!(at.whereabouts.get(guest), Some(Whereabouts::Held(_))) {
        return false;
    }
    let Some(report) = at.owners.get(guest).and_then(|owned| owned.report.as_ref()) else {
        return false;
    };
    match (report.state, until) {
        (GuestState::Running { .. }, Readiness::Running) => true,
        (GuestState::Running { beating }, Readiness::Heartbeat) => beating,
        (GuestState::Running { .. }, Readiness::DelayMs(ms)) => report.running_ms >= ms,
        _ => false,
    }
}

/// A guest that others wait for starts as early as the most urgent of them.
pub(super) fn ranks<'a>(
    cluster: &'a Cluster,
    lost: &BTreeMap<&'a GuestId, (u64, &Loss)>,
) -> BTreeMap<&'a GuestId, (Priority, core::cmp::Reverse<Resources>)> {
    let mut ranks: BTreeMap<&GuestId, Priority> = lost
        .keys()
        .map(|guest| (*guest, cluster.guests[*guest].priority))
        .collect();
    for _ in 0..MAX_CHAIN {
        let mut settled = true;
        for guest in lost.keys() {
            let mine = ranks[*guest];
            for before in cluster.guests[*guest].after.keys() {
                if let Some(theirs) = ranks.get_mut(before)
                    && *theirs > mine
                {
                    *theirs = mine;
                    settled = false;
                }
            }
        }
        if settled {
            break;
        }
    }
    // Large ones first among equals: they are the hardest to find room for.
    ranks
        .into_iter()
        .map(|(guest, rank)| {
            let Resources { mcpu, memory_mib } = cluster.guests[guest].reservation;
            (
                guest,
                (
                    rank,
                    core::cmp::Reverse(Resources {
                        mcpu: memory_mib,
                        memory_mib: mcpu,
                    }),
                ),
            )
        })
        .collect()
}
