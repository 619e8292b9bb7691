//! Days of changing load with and without DRS: does it feed the guests, and does it rest?
//!
//! Real cores (demand smoothing, planner, waves, evacuation of rules) in a world of hosts
//! that share their cores as `score` has it. One step is a minute; DRS runs every minute on
//! what it has observed and starts one wave at a time; a migration takes effect when its
//! time is over and costs CPU on both ends meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use cluster_core::balance::{Balance, Move, Why, plan};
use cluster_core::demand::{Demand, Sample, Smoothing};
use cluster_core::model::{Cluster, Guest, HostMode, Resources};
use cluster_core::rules::violations;
use cluster_core::score::{Want, got_mcpu};

use crate::harness::{self, Span, Trace, Violation};
use crate::queue::Queue;
use crate::rng::Rng;
use crate::skewed::{self, Size};

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    span: Span,
    /// Hosts.
    #[arg(long, default_value_t = 50)]
    hosts: u64,
    /// Guests.
    #[arg(long, default_value_t = 500)]
    guests: u64,
    /// Days of each history.
    #[arg(long, default_value_t = 2)]
    days: u64,
    /// DRS's threshold.
    #[arg(long, default_value_t = 3)]
    threshold: u8,
}

const MINUTE_US: u64 = 60_000_000;
const MINUTES_PER_DAY: u64 = 24 * 60;
/// A guest that moves back to where it was within so many minutes oscillates.
const BACK_WITHIN_MINUTES: u64 = 60;
/// A host fails now and then, once in so many minutes, and comes back an hour later.
const FAILURE_EVERY_MINUTES: u64 = 700;

/// Cores of a host.
const HOST_MCPU: u64 = 24_000;

/// How a guest's load behaves.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// Up by day, down by night, at its own hour.
    Diurnal,
    /// Mostly idle; every few hours at full speed for some minutes.
    Bursts,
    /// About the same, but never still.
    Noise,
    /// Up and down with the period of a planner that reacts too fast.
    Sawtooth,
}

struct Load {
    shape: Shape,
    phase: u64,
    peak_mcpu: u64,
    rng: Rng,
    burst_left: u64,
}

impl Load {
    fn new(rng: &mut Rng, guest: &Guest) -> Self {
        let shapes = [Shape::Diurnal, Shape::Bursts, Shape::Noise, Shape::Sawtooth];
        Self {
            shape: *rng.pick(&shapes),
            phase: rng.below(MINUTES_PER_DAY),
            peak_mcpu: guest.configured.mcpu,
            rng: rng.split(),
            burst_left: 0,
        }
    }

    /// What it wants in this minute.
    fn wants(&mut self, minute: u64) -> u64 {
        let at = minute + self.phase;
        let permille = match self.shape {
            Shape::Diurnal => {
                let of_day = at % MINUTES_PER_DAY;
                let from_noon = of_day.abs_diff(MINUTES_PER_DAY / 2);
                1000 - from_noon * 900 / (MINUTES_PER_DAY / 2)
            }
            Shape::Bursts => {
                if self.burst_left == 0 && self.rng.below(180) == 0 {
                    self.burst_left = self.rng.between(1, 20);
                }
                self.burst_left = self.burst_left.saturating_sub(1);
                if self.burst_left > 0 { 1000 } else { 80 }
            }
            Shape::Noise => 350 + self.rng.below(300),
            Shape::Sawtooth => at % 8 * 130,
        };
        self.peak_mcpu * permille / 1000
    }
}

/// What a history counted.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// CPU wanted, in thousandths of a core times minutes.
    wanted: u64,
    /// CPU wanted and not had, with DRS.
    starved: u64,
    /// The same with nothing ever moved.
    starved_without: u64,
    moves: u64,
    back_and_forth: u64,
    guest_days: u64,
}

struct World {
    cluster: Cluster,
    loads: Vec<Load>,
    demands: Vec<Demand>,
    wants: Vec<u64>,
    /// Migrations under way, by guest.
    under_way: BTreeMap<String, Move>,
    /// Those of them that even loads; others have no choice.
    weighed: BTreeSet<String>,
    last_move: BTreeMap<String, (u64, String)>,
    settings: Balance,
    tally: Tally,
}

enum Event {
    Minute,
    Arrived(String),
    Back(String),
}

/// Runs the histories and says what came of them.
pub fn main(args: &Args) -> ExitCode {
    let mut all = Tally::default();
    let result = harness::run(
        &args.span,
        |seed, trace| history(args, seed, trace),
        |one: Tally| {
            all.wanted += one.wanted;
            all.starved += one.starved;
            all.starved_without += one.starved_without;
            all.moves += one.moves;
            all.back_and_forth += one.back_and_forth;
            all.guest_days += one.guest_days;
        },
    );
    let ppm = |part: u64| part * 1_000_000 / all.wanted.max(1);
    println!(
        "starved of demand: {} ppm with DRS, {} ppm without; moves per guest and day: {}.{:02}; \
         moves straight back within an hour: {} of {}",
        ppm(all.starved),
        ppm(all.starved_without),
        all.moves / all.guest_days.max(1),
        all.moves * 100 / all.guest_days.max(1) % 100,
        all.back_and_forth,
        all.moves
    );
    harness::verdict("drs", &args.span, &result)
}

/// One history.
pub fn history(args: &Args, seed: u64, trace: &mut Trace) -> Result<Tally, Violation> {
    let mut rng = Rng::new(seed);
    let size = Size {
        hosts: args.hosts,
        guests: args.guests,
        rules: args.guests / 20,
    };
    let mut cluster = skewed::cluster(seed, size);
    for host in cluster.hosts.values_mut() {
        // Tight on average, so that the crooked start starves guests.
        host.capacity.mcpu = HOST_MCPU;
    }
    let mut world = World::new(cluster, &mut rng, args.threshold);
    let mut still = World::new(world.cluster.clone(), &mut Rng::new(seed), args.threshold);
    let mut queue = Queue::default();
    queue.at(0, Event::Minute);
    let minutes = args.days * MINUTES_PER_DAY;
    while let Some((now_us, event)) = queue.pop() {
        let minute = now_us / MINUTE_US;
        match event {
            Event::Minute => {
                world.live(minute);
                still.live(minute);
                world.tally.starved_without = still.tally.starved;
                world.balance(now_us, &mut queue, trace);
                if rng.below(FAILURE_EVERY_MINUTES) == 0 {
                    world.host_rests(now_us, &mut rng, &mut queue, trace);
                }
                if minute + 1 < minutes {
                    queue.after(MINUTE_US, Event::Minute);
                }
            }
            Event::Arrived(guest) => world.arrive(minute, &guest),
            Event::Back(host) => world.set_mode(&host, HostMode::Active),
        }
        world.check(now_us)?;
    }
    world.tally.guest_days = args.guests * args.days;
    Ok(world.tally)
}

impl World {
    fn new(cluster: Cluster, rng: &mut Rng, threshold: u8) -> Self {
        let loads: Vec<Load> = cluster.guests.values().map(|g| Load::new(rng, g)).collect();
        Self {
            demands: vec![Demand::default(); loads.len()],
            wants: vec![0; loads.len()],
            loads,
            cluster,
            under_way: BTreeMap::new(),
            weighed: BTreeSet::new(),
            last_move: BTreeMap::new(),
            settings: Balance {
                threshold,
                ..Balance::default()
            },
            tally: Tally::default(),
        }
    }

    /// Lets the guests run for a minute and observes them.
    fn live(&mut self, minute: u64) {
        let mut asked: BTreeMap<String, Want> = BTreeMap::new();
        for (index, guest) in self.cluster.guests.values().enumerate() {
            self.wants[index] = self.loads[index].wants(minute);
            if let Some(host) = &guest.host {
                asked.entry(host.clone()).or_default().wanted.mcpu += self.wants[index];
            }
        }
        // A migration keeps half a core busy on either end.
        for one in self.under_way.values() {
            for host in [&one.from, &one.to] {
                asked.entry(host.clone()).or_default().wanted.mcpu += 500;
            }
        }
        let hosts = &self.cluster.hosts;
        for (index, guest) in self.cluster.guests.values_mut().enumerate() {
            let Some(host) = &guest.host else { continue };
            // What it gets depends on what it wants now, not on what was planned with.
            guest.demand.mcpu = self.wants[index];
            let used_mcpu = got_mcpu(guest, asked[host], hosts[host].capacity);
            let delayed_mcpu = self.wants[index] - used_mcpu;
            self.tally.wanted += self.wants[index];
            self.tally.starved += delayed_mcpu;
            let sample = Sample {
                used_mcpu,
                delayed_mcpu,
                active_mib: guest.configured.memory_mib / 2,
            };
            guest.demand = self.demands[index].observe(
                minute * 60_000,
                sample,
                guest.configured,
                &Smoothing::default(),
            );
        }
    }

    /// Plans, and starts the first wave, once the wave before has arrived.
    fn balance(&mut self, now_us: u64, queue: &mut Queue<Event>, trace: &mut Trace) {
        if !self.under_way.is_empty() {
            return;
        }
        let plan = plan(&self.cluster, &self.settings);
        let Some(wave) = plan.waves.first() else {
            return;
        };
        for number in wave {
            let step = &plan.steps[*number];
            trace.note(now_us, || step.words.clone());
            let mut wait_us = 0;
            for one in &step.moves {
                wait_us += step.migration_ms * 1000 / step.moves.len() as u64;
                if matches!(step.why, Why::Balance | Why::Swap) {
                    self.weighed.insert(one.guest.clone());
                }
                self.under_way.insert(one.guest.clone(), one.clone());
                queue.after(wait_us, Event::Arrived(one.guest.clone()));
            }
        }
    }

    fn arrive(&mut self, minute: u64, name: &str) {
        let Some(one) = self.under_way.remove(name) else {
            return;
        };
        if let Some(guest) = self.cluster.guests.get_mut(name) {
            guest.host = Some(one.to.clone());
        }
        self.tally.moves += 1;
        if !self.weighed.remove(name) {
            self.last_move.remove(name);
            return;
        }
        let before = self.last_move.insert(one.guest, (minute, one.from));
        if before.is_some_and(|(at, from)| minute - at <= BACK_WITHIN_MINUTES && from == one.to) {
            self.tally.back_and_forth += 1;
        }
    }

    /// An operator empties a host for an hour.
    fn host_rests(
        &mut self,
        now_us: u64,
        rng: &mut Rng,
        queue: &mut Queue<Event>,
        trace: &mut Trace,
    ) {
        let host = skewed::host_name(rng.below(self.cluster.hosts.len() as u64));
        trace.note(now_us, || format!("{host} goes into maintenance"));
        self.set_mode(&host, HostMode::Maintenance);
        queue.after(60 * MINUTE_US, Event::Back(host));
    }

    fn set_mode(&mut self, host: &str, mode: HostMode) {
        if let Some(host) = self.cluster.hosts.get_mut(host) {
            host.mode = mode;
        }
    }

    /// Nothing over capacity, no hard rule broken (but while its guests move as one).
    fn check(&self, at_us: u64) -> Result<(), Violation> {
        let mut used: BTreeMap<&String, Resources> = BTreeMap::new();
        for guest in self.cluster.guests.values() {
            if let Some(host) = &guest.host {
                let at = used.entry(host).or_default();
                *at = at.plus(guest.reservation);
            }
        }
        for one in self.under_way.values() {
            let at = used.entry(&one.to).or_default();
            *at = at.plus(self.cluster.guests[&one.guest].reservation);
        }
        for (host, used) in used {
            if !used.fits(self.cluster.hosts[host].capacity) {
                let what = format!("{host} is given {used}");
                return Err(Violation { at_us, what });
            }
        }
        let moving = |guest: &String| {
            let rules = self
                .cluster
                .rules
                .values()
                .filter(|rule| rule.guests().contains(guest));
            rules
                .flat_map(cluster_core::model::Rule::guests)
                .any(|g| self.under_way.contains_key(g))
        };
        let broken = violations(&self.cluster)
            .into_iter()
            .find(|(guest, broken)| broken.hard && !moving(guest));
        match broken {
            Some((_, broken)) => Err(Violation {
                at_us,
                what: broken.why,
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drs_feeds_the_guests_and_rests() {
        let args = Args {
            span: Span {
                seed: 1,
                histories: 1,
                trace: false,
            },
            hosts: 8,
            guests: 80,
            days: 1,
            threshold: 3,
        };
        let tally = history(&args, 1, &mut Trace::default()).expect("a sound history");
        assert!(tally.starved * 2 < tally.starved_without, "{tally:?}");
        assert!(tally.moves < tally.guest_days * 4, "{tally:?}");
        // A burst may send a guest away and another fetch it back, but not as a habit.
        assert!(tally.back_and_forth * 10 <= tally.moves, "{tally:?}");
    }
}
