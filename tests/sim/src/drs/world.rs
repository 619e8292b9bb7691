//! Guests with changing load on hosts that share their cores, and DRS that has them moved.

use std::collections::{BTreeMap, BTreeSet};

use cluster_core::balance::Move;
use cluster_core::demand::{Demand, Sample, Smoothing};
use cluster_core::drs::{Automation, Decision, Drs};
use cluster_core::event::Level;
use cluster_core::model::{Cluster, HostMode};
use cluster_core::placement::usage;
use cluster_core::score::{STARVING_BELOW, WHOLE, Want, got_mcpu};
use cluster_core::settings::Settings;

use super::load::{Load, Shape};
use super::own::Own;
use super::{Event, MINUTE_US, Tally};
use crate::harness::{Trace, Violation};
use crate::queue::Queue;
use crate::rng::Rng;

/// After so long a crooked start is evened out: what moves then, moves because of its load.
pub const EVENED_MINUTES: u64 = 180;
/// A guest that moves back to where it was within so many minutes oscillates.
const BACK_WITHIN_MINUTES: u64 = 60;

/// What a link carries, and what a migration takes besides.
const LINK_MIB_S: u64 = 1000;
const SETUP_US: u64 = 100_000;
/// So many migrations in a thousand fail at their end, while things fail at all.
const FAILS_PERMILLE: u64 = 20;

/// A migration under way.
pub struct Trip {
    pub number: u64,
    pub one: Move,
    /// It evens loads; others have no choice.
    weighed: bool,
    /// A former leader had it begun: the present one does not know of it.
    pub orphan: bool,
    /// It will fail.
    fails: bool,
}

/// One cluster in time.
pub struct World {
    pub cluster: Cluster,
    loads: Vec<Load>,
    own: BTreeMap<String, Own>,
    /// Of the leader; a new one begins with nothing.
    drs: Drs,
    /// DRS is off.
    pub never_moves: bool,
    /// Migrations fail now and then.
    pub moves_fail: bool,
    rng: Rng,
    demands: Vec<Demand>,
    wants: Vec<u64>,
    /// Migrations under way, by guest.
    pub under_way: BTreeMap<String, Trip>,
    last_trip: u64,
    last_move: BTreeMap<String, (u64, String)>,
    /// Until this minute nobody leads.
    pub leaderless_until: u64,
    /// Rules that a failure has broken: balancing has to mend them.
    pub excused: BTreeSet<String>,
    /// Admission's promise held when the wave under way was planned, and nothing failed since.
    pub promised: bool,
    pub settings: Settings,
    pub tally: Tally,
}

impl World {
    /// A cluster whose guests' loads come from `rng`.
    pub fn new(cluster: Cluster, rng: &mut Rng, threshold: u8, shapes: &[Shape]) -> Self {
        let guests = cluster.guests.values();
        let loads: Vec<Load> = guests.map(|guest| Load::new(rng, guest, shapes)).collect();
        let hosts = cluster.hosts.iter();
        let own = hosts
            .map(|(name, host)| (name.clone(), Own::new(host.capacity, rng)))
            .collect();
        let mut settings = Settings::default();
        (settings.drs.automation, settings.drs.threshold) = (Automation::Full, threshold);
        Self {
            own,
            drs: Drs::default(),
            moves_fail: false,
            rng: rng.split(),
            demands: vec![Demand::default(); loads.len()],
            wants: vec![0; loads.len()],
            loads,
            never_moves: false,
            cluster,
            under_way: BTreeMap::new(),
            last_trip: 0,
            last_move: BTreeMap::new(),
            leaderless_until: 0,
            excused: BTreeSet::new(),
            promised: false,
            settings,
            tally: Tally::default(),
        }
    }

    /// The host of a guest that runs.
    fn home(&self, guest: &str) -> Option<&String> {
        let host = self.cluster.guests.get(guest)?.host.as_ref()?;
        (self.cluster.hosts[host].mode != HostMode::Lost).then_some(host)
    }

    /// Lets the guests run for a minute and observes them; whether their loads go on changing,
    /// and so whether it counts.
    pub fn live(&mut self, minute: u64, changes: bool) {
        let mut asked: BTreeMap<String, Want> = BTreeMap::new();
        let names: Vec<String> = self.cluster.guests.keys().cloned().collect();
        for (index, name) in names.iter().enumerate() {
            if changes {
                self.wants[index] = self.loads[index].wants(minute);
            }
            if let Some(host) = self.home(name).cloned() {
                asked.entry(host).or_default().wanted.mcpu += self.wants[index];
            }
        }
        // A migration keeps half a core busy on either end.
        for trip in self.under_way.values() {
            for host in [&trip.one.from, &trip.one.to] {
                asked.entry(host.clone()).or_default().wanted.mcpu += 500;
            }
        }
        for (name, own) in &mut self.own {
            own.live(minute, changes);
            if let Some(host) = self.cluster.hosts.get_mut(name) {
                host.capacity = own.capacity();
            }
        }
        let hosts = &self.cluster.hosts;
        for (index, guest) in self.cluster.guests.values_mut().enumerate() {
            let Some((name, host)) = guest.host.as_ref().map(|name| (name, &hosts[name])) else {
                continue;
            };
            if host.mode == HostMode::Lost {
                self.tally.minutes_down += u64::from(changes);
                continue;
            }
            let smoothed = guest.demand;
            // What it gets depends on what it wants now, not on what was planned with.
            guest.demand.mcpu = self.wants[index];
            let used_mcpu = got_mcpu(guest, asked[name], self.own[name].left());
            let delayed_mcpu = self.wants[index] - used_mcpu;
            if changes {
                self.tally.wanted += self.wants[index];
                self.tally.starved += delayed_mcpu;
                let starves = used_mcpu * WHOLE < self.wants[index] * STARVING_BELOW;
                self.tally.starved_minutes += u64::from(starves);
            }
            let sample = Sample {
                used_mcpu,
                delayed_mcpu,
                active_mib: guest.configured.memory_mib / 2,
            };
            // An agent that is lost reports nothing; its guests run on.
            guest.demand = if host.mode == HostMode::Quiet {
                smoothed
            } else {
                let by = Smoothing::default();
                self.demands[index].observe(minute * 60_000, sample, guest.configured, &by)
            };
        }
    }

    /// The leader looks at the cluster, and what it orders begins.
    pub fn balance(
        &mut self,
        now_us: u64,
        queue: &mut Queue<Event>,
        trace: &mut Trace,
    ) -> Result<(), Violation> {
        if self.never_moves || now_us / MINUTE_US < self.leaderless_until {
            return Ok(());
        }
        let seen = self.as_the_leader_sees_it();
        let quiet = self.under_way.is_empty();
        let decisions = self.drs.step(now_us, &seen, &self.settings);
        let begins = decisions
            .iter()
            .any(|one| matches!(one, Decision::Move { .. }));
        if quiet && begins {
            self.promised = self.is_safe();
        }
        self.carry_out(now_us, decisions, queue, trace)
    }

    fn carry_out(
        &mut self,
        now_us: u64,
        decisions: Vec<Decision>,
        queue: &mut Queue<Event>,
        trace: &mut Trace,
    ) -> Result<(), Violation> {
        for decision in decisions {
            match decision {
                Decision::Record(level, text) => {
                    trace.note(now_us, || text);
                    if level == Level::Warning {
                        // Of guests that move as one, some may have arrived.
                        self.excuse();
                    }
                }
                Decision::Move { one, because } => {
                    self.ordered(now_us, &one, &because, queue, trace)?;
                }
            }
        }
        Ok(())
    }

    /// A host is told to send a guest away. What it did for a former leader it goes on with; what
    /// the target has no room for it refuses.
    fn ordered(
        &mut self,
        now_us: u64,
        one: &Move,
        because: &str,
        queue: &mut Queue<Event>,
        trace: &mut Trace,
    ) -> Result<(), Violation> {
        let has_room = self.has_room(one);
        let why = match self.under_way.get_mut(&one.guest) {
            Some(trip) if trip.orphan && trip.one.to == one.to => {
                trip.orphan = false;
                return Ok(());
            }
            Some(trip) if trip.orphan => format!("it is on its way to {} already", trip.one.to),
            Some(_) => {
                let what = format!("{} is moved twice at the same time", one.guest);
                return Err(Violation {
                    at_us: now_us,
                    what,
                });
            }
            None if !has_room => format!("{} has no room for it now", one.to),
            None => {
                let weighed = because.contains(": evens the load");
                return self.depart(now_us, one, weighed, queue);
            }
        };
        self.failed(now_us, &one.guest, &why, trace);
        Ok(())
    }

    /// The target counts what is on its way to it, whoever ordered that. Only orders of a former
    /// leader's can come in the way.
    fn has_room(&self, one: &Move) -> bool {
        if !self.under_way.values().any(|trip| trip.orphan) {
            return true;
        }
        let used = usage(&self.with_arriving());
        let taken = used.get(&one.to).copied().unwrap_or_default().reserved;
        let free = self.cluster.hosts[&one.to].capacity.minus(taken);
        self.cluster.guests[&one.guest].reservation.fits(free)
    }

    /// A host says that a migration failed.
    pub fn failed(&mut self, now_us: u64, guest: &String, why: &str, trace: &mut Trace) {
        self.promised = false;
        self.tally.failed += 1;
        for decision in self.drs.failed(now_us, guest, why) {
            if let Decision::Record(_, text) = decision {
                trace.note(now_us, || text);
            }
        }
        self.excuse();
    }

    /// Guests of lost hosts run nowhere.
    pub fn as_the_leader_sees_it(&self) -> Cluster {
        let mut seen = self.cluster.clone();
        for (name, guest) in &mut seen.guests {
            guest.host = self.home(name).cloned();
        }
        seen
    }

    fn depart(
        &mut self,
        now_us: u64,
        one: &Move,
        weighed: bool,
        queue: &mut Queue<Event>,
    ) -> Result<(), Violation> {
        let Move { guest, from, to } = one.clone();
        let mode = self.cluster.hosts[&to].mode;
        let wrong = if self.home(&guest) == Some(&from) {
            (!mode.receives()).then(|| format!("{guest} is moved to {to}, which is {mode:?}"))
        } else {
            Some(format!("{guest} is moved from {from}, where it is not"))
        };
        if let Some(what) = wrong {
            return Err(Violation {
                at_us: now_us,
                what,
            });
        }
        self.last_trip += 1;
        let memory_mib = self.cluster.guests[&guest].configured.memory_mib;
        let lasts_us = SETUP_US + memory_mib * 1_000_000 / LINK_MIB_S;
        queue.after(lasts_us, Event::Arrived(guest.clone(), self.last_trip));
        let trip = Trip {
            number: self.last_trip,
            one: one.clone(),
            weighed,
            orphan: false,
            fails: self.moves_fail && self.rng.chance(FAILS_PERMILLE),
        };
        self.under_way.insert(guest, trip);
        Ok(())
    }

    /// A migration is over, unless a failure of a host has ended it before.
    pub fn arrive(&mut self, now_us: u64, name: &String, number: u64, trace: &mut Trace) {
        let minute = now_us / MINUTE_US;
        let on_its_way = self.under_way.get(name).map(|trip| trip.number);
        if on_its_way != Some(number) {
            return;
        }
        let Some(trip) = self.under_way.remove(name) else {
            return;
        };
        if trip.fails {
            self.failed(now_us, name, "the link broke", trace);
            return;
        }
        let Some(index) = self.cluster.guests.keys().position(|guest| guest == name) else {
            return;
        };
        if let Some(guest) = self.cluster.guests.get_mut(name) {
            guest.host = Some(trip.one.to.clone());
        }
        if trip.orphan {
            // The present leader knew neither of it nor of what was to come after it.
            self.excuse();
        }
        self.tally.moves += 1;
        if !trip.weighed {
            self.last_move.remove(name);
            return;
        }
        let of_shape = &mut self.tally.weighed[self.loads[index].shape as usize];
        of_shape.moves += 1;
        of_shape.late += u64::from(minute >= EVENED_MINUTES);
        let before = self.last_move.insert(name.clone(), (minute, trip.one.from));
        let lately = |at| minute - at <= BACK_WITHIN_MINUTES;
        if before.is_some_and(|(at, from)| lately(at) && from == trip.one.to) {
            of_shape.back += 1;
        }
    }

    /// Nothing is left to do, and nothing is being done.
    pub fn rests(&self) -> bool {
        let none = self.drs.round().recommendations.is_empty();
        none && self.drs.under_way().is_empty() && self.under_way.is_empty()
    }

    pub fn set_mode(&mut self, host: &str, mode: HostMode) {
        if let Some(host) = self.cluster.hosts.get_mut(host) {
            host.mode = mode;
        }
    }

    /// A new leader has observed nothing yet, and knows of no order of the old one's.
    pub fn change_leader(&mut self) {
        self.demands.fill(Demand::default());
        self.drs = Drs::default();
        self.promised = false;
        for trip in self.under_way.values_mut() {
            trip.orphan = true;
        }
    }
}
