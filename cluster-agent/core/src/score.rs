//! How well off the guests and the cluster are, in numbers people can check.
//!
//! *Host load*: demand over capacity, in thousandths, the larger of CPU and memory.
//!
//! *Guest score*: how much of the CPU it wants it gets, in thousandths. With `C` the host's
//! capacity, `D` what all its guests want and `F` what of it is reserved (each guest's
//! `f = min(wanted, reserved)`):
//! `got = wanted` if `D <= C`, else `f + (wanted - f) * (C - F) / (D - F)`.
//! What is reserved is had first, the rest is shared in proportion to what is wanted.
//!
//! *Cluster score*: all that is got over all that is wanted.
//!
//! *Imbalance*: the standard deviation of the host loads, in thousandths.
//!
//! *Waiting* and *spread*: the two measures that [`crate::balance`] can make smaller.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::balance::{contention, spread};
use crate::model::{Cluster, Guest, GuestId, HostId, HostMode, Resources};
use crate::placement::{Use, load_permille};

/// All of it, in thousandths.
pub const WHOLE: u64 = 1000;
/// A guest that gets less than this of what it wants starves.
pub const STARVING_BELOW: u64 = 950;
/// How much worse than waiting for a busy core it is to find none at all.
const OVERLOAD: u64 = 4;
/// Binary digits behind the point of a waiting.
pub(crate) const FRACTION_BITS: u32 = 10;

/// What is wanted of a host, and what of it is reserved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Want {
    /// All demand.
    pub wanted: Resources,
    /// All that guests are configured with.
    pub configured: Resources,
    /// CPU of the demand that is reserved.
    pub floor_mcpu: u64,
}

/// The part of a guest's CPU demand that its reservation covers.
fn floor_mcpu(guest: &Guest) -> u64 {
    guest.demand.mcpu.min(guest.reservation.mcpu)
}

/// CPU that a guest gets on a host where `all` is wanted.
pub fn got_mcpu(guest: &Guest, all: Want, capacity: Resources) -> u64 {
    let (wanted, floor) = (guest.demand.mcpu, floor_mcpu(guest));
    if all.wanted.mcpu <= capacity.mcpu {
        return wanted;
    }
    let left = capacity.mcpu.saturating_sub(all.floor_mcpu);
    let asked = all.wanted.mcpu.saturating_sub(all.floor_mcpu).max(1);
    floor + (wanted - floor).saturating_mul(left) / asked
}

/// The guest score: what it gets of what it wants, in thousandths.
pub fn guest_score(guest: &Guest, all: Want, capacity: Resources) -> u64 {
    match guest.demand.mcpu {
        0 => WHOLE,
        wanted => got_mcpu(guest, all, capacity).saturating_mul(WHOLE) / wanted,
    }
}

/// How much of a demand has to wait on a host, in thousandths of a core times
/// 2^[`FRACTION_BITS`]: `D * D / C`, because what arrives finds the host busy `D / C` of the
/// time, plus four times what is over the capacity. `D` and `C` in any one unit.
pub(crate) fn waiting(wanted: u64, capacity: u64) -> u64 {
    let capacity = capacity.max(1);
    let over = wanted.saturating_sub(capacity) * OVERLOAD;
    let queued = (u128::from(wanted) * u128::from(wanted)) << FRACTION_BITS;
    let queued = match u64::try_from(queued) {
        Ok(queued) => queued / capacity,
        Err(_) => u64::try_from(queued / u128::from(capacity)).unwrap_or(u64::MAX >> 2),
    };
    queued.saturating_add(over << FRACTION_BITS)
}

/// How a cluster does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Assessment {
    /// All CPU that is got over all that is wanted, in thousandths.
    pub satisfied_permille: u64,
    /// Standard deviation of the host loads, in thousandths.
    pub imbalance_permille: u64,
    /// CPU demand that has to wait, in thousandths of a core (memory counted in as
    /// [`crate::balance`] does), on hosts that are being emptied, too.
    pub waiting_mcpu: u64,
    /// Ganeti's measure: standard deviation of the free memory's share plus that of the
    /// ratio of virtual to physical cores, in millionths.
    pub spread_ppm: u64,
    /// Guests that starve, with their scores.
    pub starving: BTreeMap<GuestId, u64>,
    /// Load of each serving host, in thousandths.
    pub loads: BTreeMap<HostId, u64>,
}

/// What is wanted of each host.
fn wants(cluster: &Cluster) -> BTreeMap<&HostId, Want> {
    let mut wants: BTreeMap<&HostId, Want> = cluster
        .hosts
        .keys()
        .map(|name| (name, Want::default()))
        .collect();
    for guest in cluster.guests.values() {
        if let Some(want) = guest.host.as_ref().and_then(|host| wants.get_mut(host)) {
            want.wanted = want.wanted.plus(guest.demand);
            want.configured = want.configured.plus(guest.configured);
            want.floor_mcpu = want.floor_mcpu.saturating_add(floor_mcpu(guest));
        }
    }
    wants
}

/// The guests that run, with the capacity of their hosts and what is wanted there.
fn placed<'a>(
    cluster: &'a Cluster,
    wants: &'a BTreeMap<&HostId, Want>,
) -> impl Iterator<Item = (&'a GuestId, &'a Guest, Resources, Want)> {
    cluster.guests.iter().filter_map(|(name, guest)| {
        let at = guest.host.as_ref()?;
        let capacity = cluster.hosts.get(at)?.capacity;
        Some((name, guest, capacity, *wants.get(at)?))
    })
}

/// The score of every guest that runs.
pub fn guest_scores(cluster: &Cluster) -> BTreeMap<GuestId, u64> {
    let wants = wants(cluster);
    placed(cluster, &wants)
        .map(|(name, guest, capacity, all)| (name.clone(), guest_score(guest, all, capacity)))
        .collect()
}

/// Assesses a cluster.
pub fn assess(cluster: &Cluster) -> Assessment {
    let wants = wants(cluster);
    let mut loads = BTreeMap::new();
    let (mut wanted_of, mut configured_of) = (Vec::new(), Vec::new());
    for (name, host) in &cluster.hosts {
        let want = wants.get(name).copied().unwrap_or_default();
        if host.mode != HostMode::Lost {
            wanted_of.push((want.wanted, host.capacity));
        }
        if !host.mode.serves() {
            continue;
        }
        let used = Use {
            reserved: Resources::default(),
            wanted: want.wanted,
        };
        loads.insert(name.clone(), load_permille(used, host.capacity));
        configured_of.push((want.configured, host.capacity));
    }
    let (mut got, mut wanted) = (0_u64, 0_u64);
    let mut starving = BTreeMap::new();
    for (name, guest, host, all) in placed(cluster, &wants) {
        got += got_mcpu(guest, all, host);
        wanted += guest.demand.mcpu;
        let score = guest_score(guest, all, host);
        if score < STARVING_BELOW {
            starving.insert(name.clone(), score);
        }
    }
    Assessment {
        satisfied_permille: (got * WHOLE).checked_div(wanted).unwrap_or(WHOLE),
        imbalance_permille: deviation(&loads.values().copied().collect::<Vec<_>>()),
        waiting_mcpu: contention::total_mcpu(&wanted_of),
        spread_ppm: spread::score_ppm(&configured_of),
        starving,
        loads,
    }
}

/// Standard deviation, rounded down.
pub(crate) fn deviation(values: &[u64]) -> u64 {
    let n = values.len() as u128;
    let sum: u128 = values.iter().copied().map(u128::from).sum();
    let squares: u128 = values.iter().map(|v| u128::from(*v).pow(2)).sum();
    match n {
        0 => 0,
        _ => ((n * squares - sum * sum) / (n * n)).isqrt() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(wanted: u64, reserved: u64) -> Guest {
        let mut guest = Guest::sized(Resources::new(4000, 1024));
        guest.demand.mcpu = wanted;
        guest.reservation.mcpu = reserved;
        guest
    }

    #[test]
    fn reserved_first_the_rest_in_proportion() {
        let capacity = Resources::new(4000, 8192);
        let (safe, poor) = (guest(3000, 2000), guest(3000, 0));
        let all = Want {
            wanted: Resources::new(6000, 0),
            floor_mcpu: 2000,
            ..Want::default()
        };
        assert_eq!(got_mcpu(&safe, all, capacity), 2500);
        assert_eq!(got_mcpu(&poor, all, capacity), 1500);
        assert_eq!(guest_score(&poor, all, capacity), 500);
    }

    #[test]
    fn waiting_grows_faster_than_load_and_breaks_at_capacity() {
        let mcpu = |wanted| waiting(wanted, 1000) >> FRACTION_BITS;
        assert_eq!([mcpu(500), mcpu(1000), mcpu(1500)], [250, 1000, 4250]);
    }

    #[test]
    fn deviation_is_the_textbook_one() {
        assert_eq!(deviation(&[2, 4, 4, 4, 5, 5, 7, 9]), 2);
        assert_eq!(deviation(&[]), 0);
    }
}
