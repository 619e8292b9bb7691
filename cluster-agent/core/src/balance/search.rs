//! The best next step: the hosts under most pressure against those under least.
//!
//! Looking at every guest and every host is quadratic. A step that evens loads goes from a
//! host near the top to one near the bottom, by CPU, by memory or by both, so only these
//! are looked at, until they are *stuck* (nothing on them gains); then the next ones are,
//! down to the last. What stops a planner has therefore been looked for everywhere.

use alloc::vec;
use alloc::vec::Vec;

use super::field::{Field, U};
use super::measure::{Objective, Shift};
use crate::admission::ledger::H;
use crate::model::Resources;

/// Hosts looked at for CPU, for memory and for both: sources.
const SOURCES: [usize; 3] = [2, 2, 2];
/// Hosts looked at for CPU, for memory and for both: targets.
const TARGETS: [usize; 3] = [3, 3, 3];
/// Hosts with room that a walk looks for.
const FOUND: usize = 4;
/// Steps that are looked at closely.
const CLOSELY: usize = 8;
/// Hosts walked over to find room for a unit that none of the targets takes.
const WALK: usize = 64;

/// A step that may be taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    pub unit: U,
    /// Comes back in a swap.
    pub back: Option<U>,
    /// That one goes first.
    pub back_first: bool,
    pub shift: Shift,
    pub gain: i64,
    pub burden: u64,
}

/// The best few by a key; of equals the first.
struct Best<T> {
    kept: Vec<(i64, T)>,
    most: usize,
}

impl<T: Copy> Best<T> {
    fn new(most: usize) -> Self {
        Self {
            kept: Vec::with_capacity(most + 1),
            most,
        }
    }

    fn wants(&self, key: i64) -> bool {
        self.kept.len() < self.most || self.kept.last().is_some_and(|(least, _)| key > *least)
    }

    fn offer(&mut self, key: i64, item: T) {
        if self.wants(key) {
            let place = self.kept.partition_point(|(other, _)| *other >= key);
            self.kept.insert(place, (key, item));
            self.kept.truncate(self.most);
        }
    }

    fn items(&self) -> impl Iterator<Item = T> + '_ {
        self.kept.iter().map(|(_, item)| *item)
    }
}

/// Hosts at both ends.
struct Ends {
    hot: Vec<H>,
    cool: Vec<H>,
}

/// The search, with what it remembers between steps.
pub(crate) struct Search {
    stuck: Vec<bool>,
    /// Something has changed since the first host that is stuck got stuck.
    stale: bool,
}

impl Search {
    pub fn new(field: &Field) -> Self {
        Self {
            stuck: vec![false; field.load.len()],
            stale: false,
        }
    }

    /// Takes the best single move there is. `false`: no move gains enough.
    pub fn step<O: Objective>(&mut self, field: &mut Field, objective: &O) -> Option<Candidate> {
        loop {
            let ends = ends(field, objective, &self.stuck);
            if ends.hot.is_empty() {
                if !self.stale {
                    return None;
                }
                self.stuck.fill(false);
                self.stale = false;
                continue;
            }
            let mut best = Best::new(CLOSELY);
            let mut order = Vec::new();
            for source in &ends.hot {
                scan(field, objective, *source, &ends.cool, &mut order, &mut best);
            }
            if let Some(taken) = take_best(field, objective, &best) {
                self.touched(&taken);
                return Some(taken);
            }
            for source in ends.hot {
                self.stuck[source as usize] = true;
            }
        }
    }

    /// Takes the best swap between the ends. `None`: no swap gains enough.
    pub fn swap<O: Objective>(&mut self, field: &mut Field, objective: &O) -> Option<Candidate> {
        let ends = ends(field, objective, &vec![false; self.stuck.len()]);
        let mut best = Best::new(CLOSELY);
        for source in &ends.hot {
            for target in ends.cool.iter().filter(|target| *target != source) {
                scan_swaps(field, objective, *source, *target, &mut best);
            }
        }
        let taken = take_best(field, objective, &best)?;
        self.touched(&taken);
        Some(taken)
    }

    fn touched(&mut self, taken: &Candidate) {
        self.stuck[taken.shift.from as usize] = false;
        self.stuck[taken.shift.to as usize] = false;
        self.stale = true;
    }
}

fn ends<O: Objective>(field: &Field, objective: &O, stuck: &[bool]) -> Ends {
    let mut hot: [Best<H>; 3] = SOURCES.map(Best::new);
    let mut cool: [Best<H>; 3] = TARGETS.map(Best::new);
    for host in field.hosts() {
        if !field.serves(host) {
            continue;
        }
        let pressure = objective.pressure(field, host);
        let source = !stuck[host as usize]
            && !field.on[host as usize].is_empty()
            && !objective.calm(field, host);
        let target = field.books().hosts[host as usize].receives;
        for (direction, pressure) in pressure.into_iter().enumerate() {
            if source {
                hot[direction].offer(pressure, host);
            }
            if target {
                cool[direction].offer(-pressure, host);
            }
        }
    }
    Ends {
        hot: union(&hot),
        cool: union(&cool),
    }
}

/// All of them once, those that all directions agree on (the last) first.
fn union(ends: &[Best<H>; 3]) -> Vec<H> {
    let mut hosts: Vec<H> = Vec::with_capacity(12);
    for host in ends.iter().rev().flat_map(Best::items) {
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts
}

/// Looks at all moves from a host.
fn scan<O: Objective>(
    field: &Field,
    objective: &O,
    source: H,
    cool: &[H],
    order: &mut Vec<H>,
    best: &mut Best<Candidate>,
) {
    for index in &field.on[source as usize] {
        let unit = field.unit(*index);
        if !unit.movable || unit.split {
            continue;
        }
        let mut room = false;
        for target in cool {
            room |= look(field, objective, *index, *target, best);
        }
        if !room {
            walk(field, objective, *index, order, best);
        }
    }
}

/// Looks for hosts further up that take a unit.
fn walk<O: Objective>(
    field: &Field,
    objective: &O,
    unit: U,
    order: &mut Vec<H>,
    best: &mut Best<Candidate>,
) {
    if order.is_empty() {
        *order = field
            .hosts()
            .filter(|host| field.books().hosts[*host as usize].receives)
            .collect();
        order.sort_by_cached_key(|host| (objective.pressure(field, *host)[2], *host));
    }
    let restricted = field.unit(unit).bound;
    let reach = if restricted { order.len() } else { WALK };
    let mut found = 0;
    for target in order.iter().take(reach) {
        found += usize::from(look(field, objective, unit, *target, best));
        if found == FOUND {
            break;
        }
    }
}

/// Looks at one move; says whether the host would take the unit at all.
fn look<O: Objective>(
    field: &Field,
    objective: &O,
    index: U,
    target: H,
    best: &mut Best<Candidate>,
) -> bool {
    let unit = field.unit(index);
    if target == unit.host || !field.takes(index, target, Resources::default()) {
        return false;
    }
    let shift = Shift::one_way(unit.host, target, unit.weight);
    let wishes = field.wishes_broken(index, unit.host) - field.wishes_broken(index, target);
    let gain = objective.estimate(field, &shift) + wishes * objective.wish();
    let key = objective.merit(gain, unit.burden);
    if best.wants(key) && (!O::EXACT || objective.worth(field, &shift, gain, unit.burden)) {
        let candidate = Candidate {
            unit: index,
            back: None,
            back_first: false,
            shift,
            gain,
            burden: unit.burden,
        };
        best.offer(key, candidate);
    }
    true
}

/// Looks at all swaps between two hosts.
fn scan_swaps<O: Objective>(
    field: &Field,
    objective: &O,
    source: H,
    target: H,
    best: &mut Best<Candidate>,
) {
    let may = |unit: &&U| {
        let unit = field.unit(**unit);
        unit.movable && !unit.split
    };
    let receives = field.books().hosts[source as usize].receives;
    for out in field.on[source as usize].iter().filter(may) {
        for back in field.on[target as usize].iter().filter(may) {
            let (a, b) = (field.unit(*out), field.unit(*back));
            let shift = Shift {
                from: source,
                to: target,
                out: a.weight,
                back: b.weight,
            };
            let wishes = field.wishes_broken(*out, source) - field.wishes_broken(*out, target)
                + field.wishes_broken(*back, target)
                - field.wishes_broken(*back, source);
            let gain = objective.estimate(field, &shift) + wishes * objective.wish();
            let burden = a.burden + b.burden;
            let key = objective.merit(gain, burden);
            if best.wants(key)
                && (!O::EXACT || objective.worth(field, &shift, gain, burden))
                && receives
                && field.takes(*out, target, b.size)
                && field.takes(*back, source, a.size)
            {
                let candidate = Candidate {
                    unit: *out,
                    back: Some(*back),
                    back_first: false,
                    shift,
                    gain,
                    burden,
                };
                best.offer(key, candidate);
            }
        }
    }
}

/// Looks closely at the best few and takes the first that passes everything.
fn take_best<O: Objective>(
    field: &mut Field,
    objective: &O,
    best: &Best<Candidate>,
) -> Option<Candidate> {
    let mut exact: Vec<Candidate> = best
        .items()
        .filter_map(|mut candidate| {
            if !O::EXACT {
                candidate.gain = objective.gain(field, &candidate.shift);
            }
            let Candidate {
                shift,
                gain,
                burden,
                ..
            } = candidate;
            objective
                .worth(field, &shift, gain, burden)
                .then_some(candidate)
        })
        .collect();
    exact.sort_by_key(|c| core::cmp::Reverse(objective.merit(c.gain, c.burden)));
    exact
        .into_iter()
        .find_map(|candidate| execute(field, candidate))
}

/// Carries a candidate out, if every intermediate state is good.
fn execute(field: &mut Field, candidate: Candidate) -> Option<Candidate> {
    let Shift { from, to, .. } = candidate.shift;
    let unit = candidate.unit;
    let Some(back) = candidate.back else {
        return field.try_shift(unit, to).then_some(candidate);
    };
    // Whichever fits first goes first.
    let none = Resources::default();
    for back_first in [false, true] {
        let (first, second) = if back_first {
            ((back, from), (unit, to))
        } else {
            ((unit, to), (back, from))
        };
        if field.takes(first.0, first.1, none) && field.try_shift(first.0, first.1) {
            if field.takes(second.0, second.1, none) && field.try_shift(second.0, second.1) {
                return Some(Candidate {
                    back_first,
                    ..candidate
                });
            }
            // The second's target is where the first came from.
            field.shift(first.0, second.1);
        }
    }
    None
}
