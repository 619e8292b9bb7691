//! The cluster as the planner moves guests about in it: indices, sums, and units.
//!
//! A *unit* is what moves as one: a guest, or the guests of one keep-together rule that
//! share a host. Reservations and hard rules are kept in admission's own books, so that
//! what is planned is what is admitted.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use super::settings::{Balance, Measure};
use crate::admission::Admission;
use crate::admission::ledger::{G, H, Ledger};
use crate::model::{Affinity, Cluster, HostMode, Resources, Rule};
use crate::settings::{AdmissionPolicy, Enforcement};

/// Index of a unit.
pub(crate) type U = u32;

/// What moves as one.
pub(crate) struct Unit {
    pub members: Vec<G>,
    pub host: H,
    /// What it reserves.
    pub size: Resources,
    /// What counts in the measure.
    pub weight: Resources,
    /// What moving it costs, as [`super::cost::burden`] has it.
    pub burden: u64,
    /// Every member may be moved automatically.
    pub movable: bool,
    /// A hard rule speaks of it.
    pub bound: bool,
    /// Others of its keep-together rule are on another host.
    pub split: bool,
    /// Soft rules that speak of it.
    pub soft: Vec<u32>,
}

/// The dense state.
pub(crate) struct Field {
    pub admission: Admission,
    /// Keep the admission policy's promise.
    pub promise: bool,
    pub modes: Vec<HostMode>,
    pub units: Vec<Unit>,
    /// Units on each host.
    pub on: Vec<Vec<U>>,
    /// Sum of the weights on each host.
    pub load: Vec<Resources>,
    /// The unit of each guest; `None` for those without a host.
    pub unit_of: Vec<Option<U>>,
    /// Per soft rule and host: is it as wished?
    pub soft: Vec<Vec<bool>>,
}

impl Field {
    pub fn new(cluster: &Cluster, settings: &Balance) -> Self {
        let policy = match settings.enforcement {
            Enforcement::Refuse => settings.admission,
            Enforcement::Warn => AdmissionPolicy::Off,
        };
        let mut admission = Admission::new(cluster, policy);
        // A promise that is broken already cannot be kept, and must not forbid the repair.
        let promise = policy != AdmissionPolicy::Off && admission.safe().is_ok();
        let hosts = cluster.hosts.len();
        let mut field = Self {
            admission,
            promise,
            modes: cluster.hosts.values().map(|host| host.mode).collect(),
            units: Vec::new(),
            on: vec![Vec::new(); hosts],
            load: vec![Resources::default(); hosts],
            unit_of: vec![None; cluster.guests.len()],
            soft: Vec::new(),
        };
        field.gather_units(cluster, settings);
        field.mark_split();
        field.index_soft_rules(cluster);
        field
    }

    pub fn books(&self) -> &Ledger {
        &self.admission.ledger
    }

    pub fn hosts(&self) -> core::ops::Range<H> {
        0..self.load.len() as H
    }

    pub fn capacity(&self, host: H) -> Resources {
        self.books().hosts[host as usize].capacity
    }

    pub fn serves(&self, host: H) -> bool {
        self.books().hosts[host as usize].serves
    }

    pub fn unit(&self, unit: U) -> &Unit {
        &self.units[unit as usize]
    }

    fn gather_units(&mut self, cluster: &Cluster, settings: &Balance) {
        // Guests of one keep-together rule, or of rules that share a guest, on one host.
        let mut by_rule: BTreeMap<(u32, H), U> = BTreeMap::new();
        let roots = rule_roots(self.books());
        for (index, guest) in cluster.guests.values().enumerate() {
            let index = index as G;
            let dense = &self.books().guests[index as usize];
            let Some(host) = dense.host else { continue };
            let together = dense
                .bonds
                .as_ref()
                .and_then(|bonds| bonds.togethers.first().copied());
            let bound = dense.bonds.is_some();
            let known = together.and_then(|rule| by_rule.get(&(roots[rule as usize], host)));
            let unit = known.copied().unwrap_or_else(|| {
                self.units.push(Unit::empty(host));
                let unit = self.units.len() as U - 1;
                if let Some(rule) = together {
                    by_rule.insert((roots[rule as usize], host), unit);
                }
                self.on[host as usize].push(unit);
                unit
            });
            let weight = match settings.measure {
                Measure::Waiting => guest.demand,
                Measure::Spread => guest.configured,
            };
            self.unit_of[index as usize] = Some(unit);
            self.load[host as usize] = self.load[host as usize].plus(weight);
            let unit = &mut self.units[unit as usize];
            unit.members.push(index);
            unit.size = unit.size.plus(guest.reservation);
            unit.weight = unit.weight.plus(weight);
            unit.burden += super::cost::burden(guest);
            unit.movable &= guest.movable;
            unit.bound |= bound;
        }
    }

    /// Marks the units whose keep-together rules are broken.
    pub fn mark_split(&mut self) {
        for unit in 0..self.units.len() {
            // Parts that have met on a host by chance are parts until they are joined.
            let split = self.units[unit].bound && {
                self.fellows(unit as U)
                    .any(|other| self.unit_of[other as usize] != Some(unit as U))
            };
            self.units[unit].split = split;
        }
    }

    /// All guests with a host that must run where this unit does, its own among them.
    pub fn fellows(&self, unit: U) -> impl Iterator<Item = G> {
        let books = self.books();
        self.unit(unit)
            .members
            .iter()
            .filter_map(|member| books.guests[*member as usize].bonds.as_ref())
            .flat_map(|bonds| &bonds.togethers)
            .flat_map(|rule| books.togethers[*rule as usize].iter().copied())
            .filter(|guest| books.guests[*guest as usize].host.is_some())
    }

    fn index_soft_rules(&mut self, cluster: &Cluster) {
        for rule in cluster.rules.values() {
            let Rule::GuestsToHosts {
                guests,
                group,
                affinity,
                hard: false,
            } = rule
            else {
                continue;
            };
            let wished = cluster
                .hosts
                .values()
                .map(|host| host.groups.contains(group) == (*affinity == Affinity::On));
            let index = self.soft.len() as u32;
            self.soft.push(wished.collect());
            for guest in guests {
                let guest = self.books().guest(guest);
                let unit = guest.and_then(|g| self.unit_of.get(g as usize).copied().flatten());
                if let Some(unit) = unit {
                    self.units[unit as usize].soft.push(index);
                }
            }
        }
    }

    /// How many wishes are broken when the unit runs on this host.
    pub fn wishes_broken(&self, unit: U, host: H) -> i64 {
        let soft = &self.unit(unit).soft;
        soft.iter()
            .filter(|rule| !self.soft[**rule as usize][host as usize])
            .count()
            .cast_signed() as i64
    }

    /// Do hard rules let the unit run on this host, wherever it is now?
    pub fn allows(&self, unit: U, host: H) -> bool {
        let books = self.books();
        let unit = self.unit(unit);
        // A host's own units are asked about too; they are not in their own way.
        let others = |rule: u32| {
            let there = books.apart_on[rule as usize].get(&host).copied();
            let own = if unit.host == host {
                self.apart_members(unit, rule)
            } else {
                0
            };
            there.unwrap_or(0).saturating_sub(own)
        };
        !unit.bound
            || unit.members.iter().all(|member| {
                let Some(bonds) = &books.guests[*member as usize].bonds else {
                    return true;
                };
                let allowed = bonds.allowed.as_ref();
                allowed.is_none_or(|allowed| allowed[host as usize])
                    && bonds.aparts.iter().all(|rule| others(*rule) == 0)
            })
    }

    /// How many members of a unit a keep-apart rule speaks of.
    pub fn apart_members(&self, unit: &Unit, rule: u32) -> u32 {
        let books = self.books();
        let bound = unit.members.iter().filter(|member| {
            let bonds = books.guests[**member as usize].bonds.as_ref();
            bonds.is_some_and(|bonds| bonds.aparts.contains(&rule))
        });
        bound.count() as u32
    }

    /// Does the host receive, has it room (beside `leaving` being gone), do rules allow it?
    pub fn takes(&self, unit: U, host: H, leaving: Resources) -> bool {
        let dense = &self.books().hosts[host as usize];
        dense.receives
            && self.unit(unit).size.fits(dense.free().plus(leaving))
            && self.allows(unit, host)
    }

    /// Moves a unit, whatever that breaks.
    pub fn shift(&mut self, unit: U, to: H) {
        let moved = &mut self.units[unit as usize];
        let from = core::mem::replace(&mut moved.host, to);
        let weight = moved.weight;
        for member in &moved.members {
            self.admission.ledger.take(*member);
            self.admission.ledger.put(*member, Some(to));
        }
        self.on[from as usize].retain(|other| *other != unit);
        self.on[to as usize].push(unit);
        self.load[from as usize] = self.load[from as usize].minus(weight);
        self.load[to as usize] = self.load[to as usize].plus(weight);
    }

    /// Moves a unit if the admission policy's promise still holds then.
    pub fn try_shift(&mut self, unit: U, to: H) -> bool {
        let from = self.unit(unit).host;
        self.shift(unit, to);
        let kept = !self.promise || self.admission.safe().is_ok();
        if !kept {
            self.shift(unit, from);
        }
        kept
    }

    /// Makes the units that keep-together rules have brought to one host one unit.
    pub fn join(&mut self, units: &[U]) {
        let Some((first, rest)) = units.split_first() else {
            return;
        };
        for other in rest {
            let here = self.units[*first as usize].host;
            let gone = core::mem::replace(&mut self.units[*other as usize], Unit::empty(here));
            self.on[gone.host as usize].retain(|unit| unit != other);
            for member in &gone.members {
                self.unit_of[*member as usize] = Some(*first);
            }
            let unit = &mut self.units[*first as usize];
            unit.members.extend(gone.members);
            unit.size = unit.size.plus(gone.size);
            unit.weight = unit.weight.plus(gone.weight);
            unit.burden += gone.burden;
            unit.movable &= gone.movable;
            unit.soft.extend(gone.soft);
        }
        let unit = &mut self.units[*first as usize];
        unit.split = false;
        unit.members.sort_unstable();
        unit.soft.sort_unstable();
    }
}

impl Unit {
    fn empty(host: H) -> Self {
        Self {
            members: Vec::new(),
            host,
            size: Resources::default(),
            weight: Resources::default(),
            burden: 0,
            movable: true,
            bound: false,
            split: false,
            soft: Vec::new(),
        }
    }
}

/// For each keep-together rule the first of those it is linked with by shared guests.
fn rule_roots(books: &Ledger) -> Vec<u32> {
    let mut roots: Vec<u32> = (0..books.togethers.len() as u32).collect();
    let linked = books
        .guests
        .iter()
        .filter_map(|guest| guest.bonds.as_ref())
        .filter(|bonds| bonds.togethers.len() > 1);
    for bonds in linked {
        let least = bonds
            .togethers
            .iter()
            .map(|rule| roots[*rule as usize])
            .min()
            .unwrap_or(0);
        for rule in &bonds.togethers {
            let old = roots[*rule as usize];
            for root in &mut roots {
                if *root == old {
                    *root = least;
                }
            }
        }
    }
    roots
}
