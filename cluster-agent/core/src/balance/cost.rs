//! What a live migration costs, in the unit in which gains are counted.
//!
//! A migration keeps about a core busy on both ends for its duration and slows the guest
//! down; spread over the time for which the gain is expected to last:
//! `cost = duration * (1000 mcpu + demand / 4) / horizon`.

use crate::migration_cost::MigrationCost;
use crate::model::Guest;
use crate::score::FRACTION_BITS;

/// How long a demand is expected to stay as it is: five minutes.
const HORIZON_MS: u64 = 300_000;
/// CPU that a migration takes on both ends together.
const COPYING_MCPU: u64 = 1000;
/// Where no duration was predicted, memory is taken to flow at this speed.
const MIB_PER_MS: u64 = 1;
/// Pause, hand-over, and resumption.
const FIXED_MS: u64 = 100;

/// What a migration of the guest comes to.
pub(crate) fn migration(guest: &Guest) -> MigrationCost {
    MigrationCost {
        duration_ms: duration_ms(guest),
        ..guest.migration
    }
}

fn duration_ms(guest: &Guest) -> u64 {
    match guest.migration.duration_ms {
        0 => FIXED_MS + guest.configured.memory_mib / MIB_PER_MS,
        predicted => predicted,
    }
}

/// The cost, in thousandths of a core times 2^[`FRACTION_BITS`].
pub(crate) fn burden(guest: &Guest) -> u64 {
    let slowed = COPYING_MCPU + guest.demand.mcpu / 4;
    (duration_ms(guest).saturating_mul(slowed) << FRACTION_BITS) / HORIZON_MS
}
