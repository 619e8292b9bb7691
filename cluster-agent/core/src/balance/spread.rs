//! Ganeti's measure, as its balancer `hbal --ignore-dynu` has it for guests on shared
//! storage: the standard deviation over the serving hosts of the share of memory that is
//! free, plus that of virtual cores per physical core. It counts what guests are configured
//! with, not what they do. Here to compare planners on equal terms, and for operators who
//! want their guests spread out whatever these do.
//!
//! With `x` a host's share, `n` hosts and `Q = n * sum(x^2) - sum(x)^2`, a deviation is
//! `sqrt(Q) / n`; all in fixed point.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::field::Field;
use super::measure::{Objective, Shift};
use super::settings::Balance;
use crate::admission::ledger::H;
use crate::model::Resources;

/// Binary digits behind the point of a host's share.
const SHARE_BITS: u32 = 20;
/// Further binary digits of a root.
const ROOT_BITS: u32 = 10;
/// Binary digits of a reciprocal.
const RECIPROCAL_BITS: u32 = 52;
/// Binary digits of a slope.
const SLOPE_BITS: u32 = 30;
/// Binary digits of a growth that an estimate leaves out, so that 64 bits hold the rest.
const ROUGH_BITS: u32 = 12;

/// The measure.
pub(crate) struct Spread {
    n: i64,
    reciprocal: Vec<[u64; 2]>,
    counts: Vec<bool>,
    share: Vec<[i64; 2]>,
    sum: [i64; 2],
    squares: [i128; 2],
    root: [i64; 2],
    slope: [i64; 2],
    /// What can be shown, lest a guest moves for nothing that anybody can see.
    least_gain: i64,
    min_gain: i64,
    min_gain_below: i64,
}

/// The measure of hosts with these loads and capacities, in millionths.
pub(crate) fn score_ppm(hosts: &[(Resources, Resources)]) -> u64 {
    let n = hosts.len() as i128;
    if n == 0 {
        return 0;
    }
    let mut roots = 0;
    for dimension in 0..2 {
        let (mut sum, mut squares) = (0_i128, 0_i128);
        for (load, capacity) in hosts {
            let x = i128::from(share(*load, reciprocals(*capacity))[dimension]);
            sum += x;
            squares += x * x;
        }
        roots += root(n * squares - sum * sum);
    }
    ((i128::from(roots) * 1_000_000 / n) >> (SHARE_BITS + ROOT_BITS)) as u64
}

fn reciprocals(capacity: Resources) -> [u64; 2] {
    let of = |amount: u64| (1_u64 << RECIPROCAL_BITS) / amount.max(1);
    [of(capacity.mcpu), of(capacity.memory_mib)]
}

/// Load over capacity, in fixed point; at most a few thousand times the capacity.
fn share(load: Resources, reciprocal: [u64; 2]) -> [i64; 2] {
    let of = |amount: u64, reciprocal: u64| {
        (amount.saturating_mul(reciprocal) >> (RECIPROCAL_BITS - SHARE_BITS)).cast_signed()
    };
    [
        of(load.mcpu, reciprocal[0]),
        of(load.memory_mib, reciprocal[1]),
    ]
}

fn root(q: i128) -> i64 {
    ((q.max(0) as u128) << (2 * ROOT_BITS)).isqrt() as i64
}

impl Spread {
    pub fn new(field: &Field, settings: &Balance) -> Self {
        let hosts = field.hosts().count();
        let counts: Vec<bool> = field.hosts().map(|host| field.serves(host)).collect();
        let n = counts
            .iter()
            .filter(|counts| **counts)
            .count()
            .cast_signed() as i64;
        let scaled = |ppm: u64| {
            let of_n = (i128::from(ppm) * i128::from(n)) << (SHARE_BITS + ROOT_BITS);
            (of_n / 1_000_000) as i64
        };
        let mut new = Self {
            n,
            reciprocal: field
                .hosts()
                .map(|host| reciprocals(field.capacity(host)))
                .collect(),
            counts,
            share: vec![[0; 2]; hosts],
            sum: [0; 2],
            squares: [0; 2],
            root: [0; 2],
            slope: [0; 2],
            least_gain: scaled(1) + 1,
            min_gain: scaled(settings.min_gain_ppm),
            min_gain_below: scaled(settings.min_gain_below_ppm),
        };
        for host in field.hosts() {
            new.note(field, host);
        }
        new.refresh();
        new
    }

    fn note(&mut self, field: &Field, host: H) {
        let at = host as usize;
        if !self.counts[at] {
            return;
        }
        let new = share(field.load[at], self.reciprocal[at]);
        for (dimension, new) in new.into_iter().enumerate() {
            let old = core::mem::replace(&mut self.share[at][dimension], new);
            self.sum[dimension] += new - old;
            self.squares[dimension] +=
                i128::from(new) * i128::from(new) - i128::from(old) * i128::from(old);
        }
    }

    fn refresh(&mut self) {
        for dimension in 0..2 {
            let sum = i128::from(self.sum[dimension]);
            self.root[dimension] = root(i128::from(self.n) * self.squares[dimension] - sum * sum);
            let steep =
                i128::from(self.root[dimension]).max(i128::from(self.n.max(1)) << ROOT_BITS);
            let slope = (1_i128 << (SLOPE_BITS + 2 * ROOT_BITS)) / (2 * steep);
            self.slope[dimension] = slope as i64;
        }
    }

    /// By how much the two `Q` grow.
    fn growth(&self, field: &Field, shift: &Shift) -> [i128; 2] {
        let (from, to) = shift.after(field);
        let mut sum = [0_i64; 2];
        let mut squares = [0_i64; 2];
        for (host, load) in [(shift.from as usize, from), (shift.to as usize, to)] {
            if !self.counts[host] {
                continue;
            }
            let new = share(load, self.reciprocal[host]);
            for dimension in 0..2 {
                let (old, new) = (self.share[host][dimension], new[dimension]);
                sum[dimension] += new - old;
                squares[dimension] += (new - old) * (new + old);
            }
        }
        core::array::from_fn(|d| {
            i128::from(self.n) * i128::from(squares[d])
                - i128::from(sum[d]) * i128::from(2 * self.sum[d] + sum[d])
        })
    }
}

impl Objective for Spread {
    const EXACT: bool = false;

    fn estimate(&self, field: &Field, shift: &Shift) -> i64 {
        let growth = self.growth(field, shift);
        let rise = |d: usize| {
            let rough = (growth[d] >> ROUGH_BITS) as i64;
            i128::from(rough) * i128::from(self.slope[d])
        };
        (-((rise(0) + rise(1)) >> (SLOPE_BITS - ROUGH_BITS))) as i64
    }

    fn gain(&self, field: &Field, shift: &Shift) -> i64 {
        let growth = self.growth(field, shift);
        let gain = |d: usize| {
            let sum = i128::from(self.sum[d]);
            let q = i128::from(self.n) * self.squares[d] - sum * sum + growth[d];
            self.root[d] - root(q)
        };
        gain(0) + gain(1)
    }

    fn pressure(&self, _: &Field, host: H) -> [i64; 3] {
        let [cpu, memory] = self.share[host as usize];
        let both = i128::from(cpu) * i128::from(self.slope[0])
            + i128::from(memory) * i128::from(self.slope[1]);
        [cpu, memory, (both >> ROOT_BITS) as i64]
    }

    fn wish(&self) -> i64 {
        // Ganeti's measure knows no wishes.
        0
    }

    fn worth(&self, _: &Field, shift: &Shift, gain: i64, _: u64) -> bool {
        let bad = self.total() > self.min_gain_below;
        // A swap is two moves: only where the score is bad and single moves do not help.
        let swap = shift.back != Resources::default();
        gain >= self.least_gain && (bad || !swap && gain >= self.min_gain)
    }

    fn merit(&self, gain: i64, _: u64) -> i64 {
        gain
    }

    fn calm(&self, _: &Field, _: H) -> bool {
        false
    }

    fn settle(&mut self, field: &Field, touched: [H; 2]) {
        for host in touched {
            self.note(field, host);
        }
        self.refresh();
    }

    fn total(&self) -> i64 {
        self.root[0] + self.root[1]
    }

    fn shown(&self, gain: i64) -> i64 {
        let of_all = i128::from(gain) * 1_000_000 / i128::from(self.n.max(1));
        (of_all >> (SHARE_BITS + ROOT_BITS)) as i64
    }

    fn shown_cost(&self, _: u64) -> i64 {
        0
    }

    fn words(&self, gain: i64, _: u64) -> String {
        let less = if gain < 0 { "more" } else { "less" };
        let ppm = self.shown(gain).unsigned_abs();
        format!("{}.{:06} {less} spread", ppm / 1_000_000, ppm % 1_000_000)
    }
}
