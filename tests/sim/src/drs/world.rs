//! Guests with changing load on hosts that share their cores, and DRS that moves them.

use std::collections::{BTreeMap, BTreeSet};

use cluster_core::balance::{Balance, Move, Why, plan};
use cluster_core::demand::{Demand, Sample, Smoothing};
use cluster_core::drs::check;
use cluster_core::model::{Cluster, HostMode};
use cluster_core::score::{Want, got_mcpu};

use super::load::Load;
use super::own::Own;
use super::{Event, MINUTE_US, Tally};
use crate::harness::{Trace, Violation};
use crate::queue::Queue;
use crate::rng::Rng;

/// A guest that moves back to where it was within so many minutes oscillates.
const BACK_WITHIN_MINUTES: u64 = 60;

/// A migration under way.
pub struct Trip {
    pub number: u64,
    pub one: Move,
    /// It evens loads; others have no choice.
    weighed: bool,
    lasts_us: u64,
    /// What its step moves after it, one by one.
    then: Vec<Move>,
}

/// One cluster in time.
pub struct World {
    pub cluster: Cluster,
    loads: Vec<Load>,
    own: BTreeMap<String, Own>,
    /// DRS is off.
    pub never_moves: bool,
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
    /// The last plan was empty.
    pub rests: bool,
    pub settings: Balance,
    pub tally: Tally,
}

impl World {
    /// A cluster whose guests' loads come from `rng`.
    pub fn new(cluster: Cluster, rng: &mut Rng, threshold: u8) -> Self {
        let loads: Vec<Load> = cluster.guests.values().map(|g| Load::new(rng, g)).collect();
        let hosts = cluster.hosts.iter();
        let own = hosts
            .map(|(name, host)| (name.clone(), Own::new(host.capacity, rng)))
            .collect();
        Self {
            own,
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
            rests: false,
            settings: Balance {
                threshold,
                ..Balance::default()
            },
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

    /// Plans, and starts the first wave, once the wave before has arrived.
    pub fn balance(
        &mut self,
        now_us: u64,
        queue: &mut Queue<Event>,
        trace: &mut Trace,
    ) -> Result<(), Violation> {
        if !self.under_way.is_empty() || now_us / MINUTE_US < self.leaderless_until {
            return Ok(());
        }
        let seen = self.as_the_leader_sees_it();
        let plan = plan(&seen, &self.settings);
        self.rests = plan.steps.is_empty();
        let Some(wave) = plan.waves.first() else {
            return Ok(());
        };
        self.promised = self.is_safe();
        for number in wave {
            let step = &plan.steps[*number];
            trace.note(now_us, || step.words.clone());
            let Some((first, then)) = step.moves.split_first() else {
                continue;
            };
            let trip = Trip {
                number: 0,
                one: first.clone(),
                weighed: matches!(step.why, Why::Balance | Why::Swap),
                lasts_us: step.migration_ms * 1000 / step.moves.len() as u64,
                then: then.to_vec(),
            };
            self.depart(now_us, trip, queue)?;
        }
        Ok(())
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
        mut trip: Trip,
        queue: &mut Queue<Event>,
    ) -> Result<(), Violation> {
        let violation = |what: String| {
            Err(Violation {
                at_us: now_us,
                what,
            })
        };
        let Move { guest, from, to } = trip.one.clone();
        if self.home(&guest) != Some(&from) {
            return violation(format!("{guest} is moved from {from}, where it is not"));
        }
        let mode = self.cluster.hosts[&to].mode;
        if !mode.receives() {
            return violation(format!("{guest} is moved to {to}, which is {mode:?}"));
        }
        self.last_trip += 1;
        trip.number = self.last_trip;
        queue.after(trip.lasts_us, Event::Arrived(guest.clone(), trip.number));
        match self.under_way.insert(guest.clone(), trip) {
            Some(_) => violation(format!("{guest} is moved twice at the same time")),
            None => Ok(()),
        }
    }

    /// A migration is over, unless a failure has ended it before; the next of its step begins
    /// if it still may.
    pub fn arrive(
        &mut self,
        now_us: u64,
        name: &str,
        number: u64,
        queue: &mut Queue<Event>,
    ) -> Result<(), Violation> {
        let minute = now_us / MINUTE_US;
        let on_its_way = self.under_way.get(name).map(|trip| trip.number);
        let trip = self
            .under_way
            .remove(name)
            .filter(|_| on_its_way == Some(number));
        let Some(mut trip) = trip else {
            return Ok(());
        };
        let (one, weighed) = (trip.one.clone(), trip.weighed);
        if let Some(guest) = self.cluster.guests.get_mut(name) {
            guest.host = Some(one.to.clone());
        }
        self.tally.moves += 1;
        if weighed {
            let before = self.last_move.insert(one.guest, (minute, one.from));
            let lately = |at| minute - at <= BACK_WITHIN_MINUTES;
            if before.is_some_and(|(at, from)| lately(at) && from == one.to) {
                self.tally.back_and_forth += 1;
            }
        } else {
            self.last_move.remove(name);
        }
        if trip.then.is_empty() {
            return Ok(());
        }
        trip.one = trip.then.remove(0);
        let seen = self.as_the_leader_sees_it();
        if check(&seen, std::slice::from_ref(&trip.one)).is_err() {
            // A failure or an operator came between; the next plan mends what is torn now.
            self.excuse();
            return Ok(());
        }
        self.depart(now_us, trip, queue)
    }

    pub fn set_mode(&mut self, host: &str, mode: HostMode) {
        if let Some(host) = self.cluster.hosts.get_mut(host) {
            host.mode = mode;
        }
    }

    /// A new leader has observed nothing yet.
    pub fn forget_demand(&mut self) {
        self.demands.fill(Demand::default());
    }
}
