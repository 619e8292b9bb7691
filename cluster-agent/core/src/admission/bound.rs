//! Sums that settle most questions without packing anything.

use alloc::vec::Vec;

use super::ledger::{H, Ledger};
use crate::model::Resources;

/// Fractions of the largest capacity are counted in this unit.
const UNIT: u64 = 1 << 20;

/// A host whose loss would leave more guests than there is room elsewhere, if `more` were
/// started anywhere; and by how much.
pub(super) fn overfull(ledger: &Ledger, more: Resources) -> Option<(H, Resources)> {
    let all = ledger.free_of_all();
    ledger.serving().find_map(|host| {
        // On a host that stays, it takes its room; on the lost one, it joins the lost.
        let need = ledger.hosts[host as usize].lost.plus(more);
        let room = all.minus(ledger.hosts[host as usize].free());
        (!need.fits(room)).then(|| (host, need.minus(room)))
    })
}

/// The weights `lost(f) + c(f)` of the hosts that serve and what they may sum to.
pub(super) struct Weights {
    /// Heaviest first. `u64::MAX`: rules bind guests of that host, so that sums say nothing.
    pub by_host: Vec<(u64, H)>,
    /// What any failing set may weigh.
    pub most: u64,
}

/// Weighs every host, in one pass.
pub(super) fn weigh(ledger: &Ledger) -> Weights {
    let whole = ledger
        .hosts
        .iter()
        .fold(Resources::default(), |most, host| Resources {
            mcpu: most.mcpu.max(host.capacity.mcpu),
            memory_mib: most.memory_mib.max(host.capacity.memory_mib),
        });
    let block = ledger.block;
    let up = |size: Resources| {
        (size.mcpu * UNIT).div_ceil(whole.mcpu.max(1))
            + (size.memory_mib * UNIT).div_ceil(whole.memory_mib.max(1))
    };
    let refuge = |host: H| {
        let free = ledger.hosts[host as usize].free();
        let spare = free.minus(block);
        if !block.fits(free) {
            return 0;
        }
        (spare.mcpu * UNIT / whole.mcpu.max(1))
            .min(spare.memory_mib * UNIT / whole.memory_mib.max(1))
    };
    let mut most: u64 = 0;
    let mut by_host: Vec<(u64, H)> = ledger
        .serving()
        .map(|host| {
            let dense = &ledger.hosts[host as usize];
            let refuge = refuge(host);
            most += refuge;
            (
                if dense.bound > 0 {
                    u64::MAX
                } else {
                    up(dense.lost) + refuge
                },
                host,
            )
        })
        .collect();
    by_host.sort_unstable_by(|a, b| b.cmp(a));
    Weights { by_host, most }
}
