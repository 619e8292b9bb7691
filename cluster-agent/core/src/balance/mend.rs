//! What has to move whatever it gains: guests on hosts in maintenance, and as few guests as
//! mend a broken hard rule. Then what should move: guests whose wishes are broken.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Reverse;

use super::field::U;
use super::measure::{Objective, Shift};
use super::plan::{Unresolved, Why};
use super::planner::{Planner, Scope};
use crate::admission::ledger::H;
use crate::model::{HostMode, Resources};

/// Hosts tried for one unit when the admission policy refuses.
const TRIED: usize = 16;

/// Why a unit stays that is excluded from automation.
const NOT_BY_ITSELF: &str = "it may not be moved automatically; to move it by hand: godwit migrate";

/// Why a unit cannot leave.
pub(crate) struct Stuck {
    /// Only the admission policy stands against it.
    pub admission: bool,
    pub because: String,
}

impl<O: Objective> Planner<'_, O> {
    /// Moves a unit to the best host that takes it.
    pub(crate) fn send(&mut self, unit: U, why: &Why) -> Result<(), Stuck> {
        let from = self.field.unit(unit).host;
        let mut hosts: Vec<(i64, H)> = self
            .field
            .hosts()
            .filter(|host| *host != from && self.field.takes(unit, *host, Resources::default()))
            .map(|host| (self.gain(unit, host), host))
            .collect();
        if hosts.is_empty() {
            return Err(Stuck {
                admission: false,
                because: self.no_room(unit),
            });
        }
        if self.scope == Scope::EmptyTightly {
            let books = self.field.books();
            hosts.sort_by_key(|(_, host)| (books.hosts[*host as usize].free().memory_mib, *host));
        } else {
            hosts.sort_by_key(|(gain, host)| (Reverse(*gain), *host));
        }
        for (_, host) in hosts.into_iter().take(TRIED) {
            if self.shift(unit, host, why.clone()) {
                return Ok(());
            }
        }
        Err(Stuck {
            admission: true,
            because: format!(
                "wherever {} went, a failure of the hosts that admission control provides for could not be survived",
                self.names(unit)
            ),
        })
    }

    /// What moving a unit there gains, wishes included.
    pub(crate) fn gain(&self, unit: U, to: H) -> i64 {
        let at = self.field.unit(unit);
        let shift = Shift::one_way(at.host, to, at.weight);
        let wishes = self.field.wishes_broken(unit, at.host) - self.field.wishes_broken(unit, to);
        self.objective.gain(&self.field, &shift) + wishes * self.objective.wish()
    }

    fn no_room(&self, unit: U) -> String {
        let size = self.field.unit(unit).size;
        let books = self.field.books();
        let (mut barred, mut open, mut room) = (0, 0, Resources::default());
        for host in self.field.hosts() {
            let dense = &books.hosts[host as usize];
            if !dense.receives || host == self.field.unit(unit).host {
                continue;
            }
            if self.field.allows(unit, host) {
                let free = dense.free();
                open += 1;
                room.memory_mib = room.memory_mib.max(free.memory_mib);
                room.mcpu = room.mcpu.max(free.mcpu);
            } else {
                barred += 1;
            }
        }
        let names = self.names(unit);
        let barred = match barred {
            0 => String::new(),
            1 => "; rules keep it off 1 host".into(),
            n => format!("; rules keep it off {n} hosts"),
        };
        if open == 0 {
            return format!("no other host that receives guests may run {names}{barred}");
        }
        format!(
            "{names} needs {size}; the most that a host it may run on has free is {room}{barred}"
        )
    }

    /// Empties the hosts in maintenance, the largest guests first.
    pub(crate) fn empty_hosts(&mut self) {
        for host in self.field.hosts() {
            if self.field.modes[host as usize] == HostMode::Maintenance {
                self.empty_host(host);
            }
        }
    }

    fn empty_host(&mut self, host: H) {
        let mut units = self.field.on[host as usize].clone();
        units.sort_by_key(|unit| {
            let size = self.field.unit(*unit).size;
            (Reverse((size.memory_mib, size.mcpu)), *unit)
        });
        let name = self.field.books().host_names[host as usize].clone();
        let why = Why::Maintenance { host: name };
        for unit in units {
            let because = if self.field.unit(unit).movable {
                match self.send(unit, &why) {
                    Ok(()) => continue,
                    Err(stuck) if !stuck.admission && self.make_room(unit, &why) => continue,
                    Err(stuck) => stuck.because,
                }
            } else {
                NOT_BY_ITSELF.into()
            };
            let what = format!("{} stays on {}", self.names(unit), self.host_name(host));
            self.unresolved.push(Unresolved { what, because });
        }
    }

    /// Moves one other unit out of the way so that this one fits somewhere.
    fn make_room(&mut self, unit: U, why: &Why) -> bool {
        let need = self.field.unit(unit).size;
        let mut ways: Vec<(u64, U, H)> = Vec::new();
        for host in self.field.hosts() {
            let dense = &self.field.books().hosts[host as usize];
            if !dense.receives || !self.field.allows(unit, host) {
                continue;
            }
            let free = dense.free();
            for other in &self.field.on[host as usize] {
                let in_way = self.field.unit(*other);
                if in_way.movable && !in_way.split && need.fits(free.plus(in_way.size)) {
                    ways.push((in_way.size.memory_mib, *other, host));
                }
            }
        }
        ways.sort_unstable();
        ways.truncate(TRIED);
        for (_, other, host) in ways {
            let steps = self.steps.len();
            if self.send(other, why).is_err() {
                continue;
            }
            let fits = self.field.takes(unit, host, Resources::default());
            if fits && self.shift(unit, host, why.clone()) {
                return true;
            }
            // Nothing was won: put it back.
            self.undo(other, host, steps);
        }
        false
    }

    /// Gathers the guests of torn keep-together rules, with as few moves as possible.
    pub(crate) fn bring_together(&mut self) {
        loop {
            let split = (0..self.field.units.len() as U)
                .find(|unit| self.field.unit(*unit).split && !self.given_up.contains(unit));
            let Some(unit) = split else { return };
            let mut parts: Vec<U> = self
                .field
                .fellows(unit)
                .filter_map(|guest| self.field.unit_of[guest as usize])
                .collect();
            parts.sort_unstable();
            parts.dedup();
            if self.gather(&parts) {
                self.field.join(&parts);
                self.field.mark_split();
            } else {
                let what = format!("{} run on different hosts", self.all_names(&parts));
                self.unresolved.push(Unresolved {
                    what,
                    because: "no host that their rules allow has room for all of them, or one of them may not be moved".into(),
                });
                self.given_up.extend(parts);
            }
        }
    }

    /// Brings the parts of a torn unit to one host: the one that the fewest have to move to.
    fn gather(&mut self, parts: &[U]) -> bool {
        let mut hosts: Vec<(usize, u64, H)> = Vec::new();
        for host in self.field.hosts() {
            let away = parts
                .iter()
                .filter(|part| self.field.unit(**part).host != host);
            let (mut moves, mut burden, mut size, mut may) = (0, 0, Resources::default(), true);
            for part in away {
                let unit = self.field.unit(*part);
                moves += unit.members.len();
                burden += unit.burden;
                size = size.plus(unit.size);
                may &= unit.movable && self.field.allows(*part, host);
            }
            let dense = &self.field.books().hosts[host as usize];
            if moves == 0 || may && dense.receives && size.fits(dense.free()) {
                hosts.push((moves, burden, host));
            }
        }
        hosts.sort_unstable();
        let why = Why::Rule {
            rule: self.together_rule(parts),
        };
        for (_, _, host) in hosts.into_iter().take(TRIED) {
            let steps = self.steps.len();
            let homes: Vec<(U, H)> = parts
                .iter()
                .map(|part| (*part, self.field.unit(*part).host))
                .collect();
            let all = homes
                .iter()
                .filter(|(_, home)| *home != host)
                .all(|(part, _)| {
                    // Asked again: one of them may have just come there.
                    self.field.takes(*part, host, Resources::default())
                        && self.shift(*part, host, why.clone())
                });
            if all {
                return true;
            }
            for (part, home) in homes {
                self.undo(part, home, steps);
            }
        }
        false
    }

    /// Moves guests off hosts that guest-host rules forbid them.
    pub(crate) fn leave_forbidden_hosts(&mut self) {
        for unit in 0..self.field.units.len() as U {
            let at = self.field.unit(unit);
            let forbidden = at.bound
                && at.members.iter().any(|member| {
                    self.field.books().guests[*member as usize]
                        .bonds
                        .as_ref()
                        .and_then(|bonds| bonds.allowed.as_ref())
                        .is_some_and(|allowed| !allowed[at.host as usize])
                });
            if forbidden && self.field.serves(at.host) {
                let rule = self.host_rule(unit);
                self.must(unit, &Why::Rule { rule });
            }
        }
    }

    /// Moves a unit that has to, or says why not.
    fn must(&mut self, unit: U, why: &Why) -> bool {
        let because = if self.field.unit(unit).movable {
            match self.send(unit, why) {
                Ok(()) => return true,
                Err(stuck) => stuck.because,
            }
        } else {
            NOT_BY_ITSELF.into()
        };
        let what = format!("{} stays where it must not be", self.names(unit));
        self.unresolved.push(Unresolved { what, because });
        false
    }

    /// Moves guests of keep-apart rules off the hosts they share.
    pub(crate) fn keep_apart(&mut self) {
        for rule in 0..self.field.books().apart_on.len() as u32 {
            let crowded: BTreeMap<H, u32> = self.field.books().apart_on[rule as usize]
                .iter()
                .filter(|(host, count)| **count > 1 && self.field.serves(**host))
                .map(|(host, count)| (*host, *count))
                .collect();
            for (host, count) in crowded {
                for _ in 1..count {
                    if !self.thin_out(rule, host) {
                        break;
                    }
                }
            }
        }
    }

    /// Moves the one of the units of a keep-apart rule off a host whose move gains most.
    fn thin_out(&mut self, rule: u32, host: H) -> bool {
        let members: Vec<U> = self.field.on[host as usize]
            .iter()
            .copied()
            .filter(|unit| self.field.apart_members(self.field.unit(*unit), rule) > 0)
            .collect();
        if members.len() < 2 {
            let what = format!(
                "{} share {}",
                self.all_names(&members),
                self.host_name(host)
            );
            let because = "another rule keeps them together".into();
            self.unresolved.push(Unresolved { what, because });
            return false;
        }
        let mut ways: Vec<(i64, U)> = members
            .iter()
            .filter(|unit| self.field.unit(**unit).movable && !self.field.unit(**unit).split)
            .filter_map(|unit| {
                let best = self
                    .field
                    .hosts()
                    .filter(|to| self.field.takes(*unit, *to, Resources::default()))
                    .map(|to| self.gain(*unit, to))
                    .max()?;
                let burden = self.field.unit(*unit).burden;
                Some((self.objective.merit(best, burden), *unit))
            })
            .collect();
        ways.sort_by_key(|(merit, unit)| (Reverse(*merit), *unit));
        let why = Why::Rule {
            rule: self.apart_name(rule),
        };
        if ways
            .into_iter()
            .any(|(_, unit)| self.send(unit, &why).is_ok())
        {
            return true;
        }
        let what = format!(
            "{} share {}",
            self.all_names(&members),
            self.host_name(host)
        );
        self.unresolved.push(Unresolved {
            what,
            because: "none of them may be moved to another host that has room and that its rules and admission control allow".into(),
        });
        false
    }

    /// Grants wishes where that gains more than it costs.
    pub(crate) fn grant_wishes(&mut self) {
        if self.objective.wish() == 0 {
            return;
        }
        for unit in 0..self.field.units.len() as U {
            let at = self.field.unit(unit);
            if at.soft.is_empty() || !at.movable || at.split {
                continue;
            }
            let broken = self.field.wishes_broken(unit, at.host);
            let best = self
                .field
                .hosts()
                .filter(|to| {
                    self.field.wishes_broken(unit, *to) < broken
                        && self.field.takes(unit, *to, Resources::default())
                })
                .map(|to| (self.gain(unit, to), Reverse(to)))
                .max();
            if let Some((gain, Reverse(to))) = best
                && self.objective.merit(gain, at.burden) > 0
            {
                self.shift(unit, to, Why::Wish);
            }
        }
    }
}
