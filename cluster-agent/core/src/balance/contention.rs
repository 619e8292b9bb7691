//! Our own measure: demand that has to wait, summed over the hosts.
//!
//! A host with capacity `C` of which `D` is wanted adds `D * D / C + 4 * max(0, D - C)`
//! thousandths of a core: what arrives finds the host busy `D / C` of the time, and what is
//! over the capacity is not had at all. Memory counts the same way, with a host's whole
//! memory worth half its cores. It is least when all loads are equal, each move that evens
//! two hosts makes it smaller, and the gain of a move is in the same unit as its cost.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::field::Field;
use super::measure::{Objective, Shift};
use super::settings::{Balance, Bar};
use crate::admission::ledger::H;
use crate::model::Resources;
use crate::placement::{Use, load_permille};
use crate::score::{FRACTION_BITS, waiting};

/// A broken soft rule is worth this share of a mean host's cores, in thousandths.
const WISH_PERMILLE: u64 = 50;
/// Binary digits behind the point of the price of memory.
const PRICE_BITS: u32 = 16;

/// The measure.
pub(crate) struct Contention {
    bar: Bar,
    price: u64,
    wish: i64,
    costs: Vec<i64>,
    total: i64,
}

/// What one MiB counts in thousandths of a core, times 2^[`PRICE_BITS`]: half.
fn price(whole: Resources) -> u64 {
    (whole.mcpu << PRICE_BITS) / whole.memory_mib.max(1) / 2
}

/// What waits on one host.
fn waits(load: Resources, capacity: Resources, price: u64) -> i64 {
    let memory = u128::from(waiting(load.memory_mib, capacity.memory_mib)) * u128::from(price);
    let memory = i64::try_from(memory >> PRICE_BITS).unwrap_or(i64::MAX);
    waiting(load.mcpu, capacity.mcpu)
        .cast_signed()
        .saturating_add(memory)
}

/// The measure of hosts with these loads and capacities, in thousandths of a core.
pub(crate) fn total_mcpu(hosts: &[(Resources, Resources)]) -> u64 {
    let whole = hosts
        .iter()
        .fold(Resources::default(), |sum, (_, capacity)| {
            sum.plus(*capacity)
        });
    let price = price(whole);
    let sum: i64 = hosts
        .iter()
        .map(|(load, capacity)| waits(*load, *capacity, price))
        .sum();
    (sum >> FRACTION_BITS) as u64
}

impl Contention {
    pub fn new(field: &Field, settings: &Balance) -> Self {
        let serving: Vec<H> = field.hosts().filter(|host| field.serves(*host)).collect();
        let whole = serving.iter().fold(Resources::default(), |sum, host| {
            sum.plus(field.capacity(*host))
        });
        let mean_mcpu = whole.mcpu / (serving.len() as u64).max(1);
        let mut new = Self {
            bar: settings.bar(),
            price: price(whole),
            wish: (mean_mcpu * WISH_PERMILLE / 1000).cast_signed() * (1 << FRACTION_BITS),
            costs: Vec::new(),
            total: 0,
        };
        new.costs = field
            .hosts()
            .map(|host| new.host(field, host, field.load[host as usize]))
            .collect();
        new.total = new.costs.iter().sum();
        new
    }

    fn host(&self, field: &Field, host: H, load: Resources) -> i64 {
        waits(load, field.capacity(host), self.price)
    }
}

fn permille(load: Resources, capacity: Resources) -> u64 {
    let used = Use {
        reserved: Resources::default(),
        wanted: load,
    };
    load_permille(used, capacity)
}

impl Objective for Contention {
    const EXACT: bool = true;

    fn estimate(&self, field: &Field, shift: &Shift) -> i64 {
        self.gain(field, shift)
    }

    fn gain(&self, field: &Field, shift: &Shift) -> i64 {
        let (from, to) = shift.after(field);
        self.costs[shift.from as usize] + self.costs[shift.to as usize]
            - self.host(field, shift.from, from)
            - self.host(field, shift.to, to)
    }

    fn pressure(&self, field: &Field, host: H) -> [i64; 3] {
        let (load, capacity) = (field.load[host as usize], field.capacity(host));
        let part = |used: u64, of: u64| (used.saturating_mul(1 << 20) / of.max(1)).cast_signed();
        let cpu = part(load.mcpu, capacity.mcpu);
        let memory = part(load.memory_mib, capacity.memory_mib);
        [cpu, memory, cpu * 2 + memory]
    }

    fn wish(&self) -> i64 {
        self.wish
    }

    fn worth(&self, field: &Field, shift: &Shift, gain: i64, burden: u64) -> bool {
        let (from, to) = (shift.from as usize, shift.to as usize);
        let capacity = field.capacity(shift.from);
        let without = permille(shift.after(field).0, capacity);
        let target = permille(field.load[to], field.capacity(shift.to));
        gain > 0
            && gain.cast_unsigned() >= burden.saturating_mul(self.bar.times_cost)
            && without >= target + self.bar.gap_permille
            && permille(field.load[from], capacity) >= self.bar.calm_permille
    }

    fn merit(&self, gain: i64, burden: u64) -> i64 {
        gain.saturating_sub(burden.saturating_mul(self.bar.times_cost).cast_signed())
    }

    fn calm(&self, field: &Field, host: H) -> bool {
        let load = permille(field.load[host as usize], field.capacity(host));
        load < self.bar.calm_permille.max(self.bar.gap_permille)
    }

    fn settle(&mut self, field: &Field, touched: [H; 2]) {
        for host in touched {
            let cost = self.host(field, host, field.load[host as usize]);
            self.total += cost - self.costs[host as usize];
            self.costs[host as usize] = cost;
        }
    }

    fn total(&self) -> i64 {
        self.total
    }

    fn shown(&self, gain: i64) -> i64 {
        gain >> FRACTION_BITS
    }

    fn shown_cost(&self, burden: u64) -> i64 {
        (burden >> FRACTION_BITS).cast_signed()
    }

    fn words(&self, gain: i64, burden: u64) -> String {
        let cores = |fixed: i64| {
            let mcpu = (fixed >> FRACTION_BITS).unsigned_abs();
            format!("{}.{:03}", mcpu / 1000, mcpu % 1000)
        };
        let less = if gain < 0 { "more" } else { "less" };
        format!(
            "{} cores {less} waiting, for a cost of {}",
            cores(gain),
            cores(burden.cast_signed())
        )
    }
}
