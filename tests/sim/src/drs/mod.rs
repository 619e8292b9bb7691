//! Days of changing load with and without DRS: does it feed the guests, and does it rest?
//!
//! Real cores (demand smoothing, planner, waves, rules, admission, placement of restarts) in a
//! world of hosts that share their cores as `score` has it. One step is a minute; DRS runs every
//! minute on what it has observed and starts one wave at a time; a migration takes effect when
//! its time is over and costs CPU on both ends meanwhile. Hosts have work of their own. Hosts die and come back, agents are
//! lost, leaders change and operators empty hosts all the while; HA restarts what was lost. In
//! the end all is healed, loads stand still, and the cluster has to come to rest.

mod checks;
mod faults;
mod load;
mod own;
mod world;

use std::process::ExitCode;

use cluster_core::model::HostMode;

use crate::harness::{self, Span, Trace, Violation};
use crate::queue::Queue;
use crate::rng::Rng;
use crate::skewed::{self, Size};
use faults::Faults;
use world::World;

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
    /// No failures: only load, and maintenance now and then.
    #[arg(long)]
    calm: bool,
}

const MINUTE_US: u64 = 60_000_000;
const MINUTES_PER_DAY: u64 = 24 * 60;
/// Within so many minutes after the last failure the cluster has to be at rest.
const SETTLES_MINUTES: u64 = 180;

/// Cores of a host.
const HOST_MCPU: u64 = 24_000;

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
    deaths: u64,
    restarts: u64,
    /// Guests times minutes for which they waited for their restart.
    minutes_down: u64,
    /// Waves after which admission's promise was looked at.
    promises: u64,
    /// How long it took to come to rest in the end.
    settled_minutes: u64,
}

impl Tally {
    fn add(&mut self, one: &Self) {
        self.wanted += one.wanted;
        self.starved += one.starved;
        self.starved_without += one.starved_without;
        self.moves += one.moves;
        self.back_and_forth += one.back_and_forth;
        self.guest_days += one.guest_days;
        self.deaths += one.deaths;
        self.restarts += one.restarts;
        self.minutes_down += one.minutes_down;
        self.promises += one.promises;
        self.settled_minutes = self.settled_minutes.max(one.settled_minutes);
    }
}

enum Event {
    Minute,
    /// Of a migration by its number.
    Arrived(String, u64),
    Back(String),
}

/// Runs the histories and says what came of them.
pub fn main(args: &Args) -> ExitCode {
    let mut all = Tally::default();
    let result = harness::run(
        &args.span,
        |seed, trace| history(args, seed, trace),
        |one: Tally| all.add(&one),
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
    println!(
        "{} hosts died, {} restarts, {} guest minutes down; the promise looked at after {} waves; \
         at rest {} minutes after the last failure at the latest",
        all.deaths, all.restarts, all.minutes_down, all.promises, all.settled_minutes
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
    let world = World::new(cluster, &mut rng, args.threshold);
    let mut still = World::new(world.cluster.clone(), &mut Rng::new(seed), args.threshold);
    still.never_moves = true;
    let minutes = args.days * MINUTES_PER_DAY;
    let faults = Faults::new(rng.split(), args.hosts, args.calm);
    let mut still = days(still, faults.clone(), minutes, &mut Trace::default())?;
    let mut world = days(world, faults, minutes, trace)?;
    world.tally.starved_without = std::mem::take(&mut still.tally.starved);
    world.tally.guest_days = args.guests * args.days;
    Ok(world.tally)
}

/// Lives through so many minutes with failures, and then until all is at rest.
fn days(
    mut world: World,
    mut faults: Faults,
    minutes: u64,
    trace: &mut Trace,
) -> Result<World, Violation> {
    let mut queue = Queue::default();
    queue.at(0, Event::Minute);
    while let Some((now_us, event)) = queue.pop() {
        let minute = now_us / MINUTE_US;
        match event {
            Event::Minute => {
                let healed = minute >= minutes;
                if !healed {
                    world.live(minute, true);
                    for (fault, lasts) in faults.draw() {
                        world.suffer(&fault, lasts, &mut queue, trace);
                    }
                } else if world.never_moves {
                    return Ok(world);
                } else {
                    world.live(minute, false);
                }
                // While guests are restarted, nothing is moved.
                if !world.restart_the_lost(trace, now_us) && !world.never_moves {
                    world.balance(now_us, &mut queue, trace)?;
                }
                let in_service = world.cluster.hosts.values();
                let in_service = in_service
                    .filter(|host| host.mode == HostMode::Active)
                    .count();
                if healed && in_service == world.cluster.hosts.len() {
                    let since = world.tally.settled_minutes;
                    match world.unsettled() {
                        None => return Ok(world),
                        Some(what) if since > SETTLES_MINUTES => {
                            return Err(Violation {
                                at_us: now_us,
                                what,
                            });
                        }
                        Some(_) => world.tally.settled_minutes += 1,
                    }
                }
                queue.after(MINUTE_US, Event::Minute);
            }
            Event::Arrived(guest, number) => world.arrive(now_us, &guest, number, &mut queue)?,
            Event::Back(host) => world.recover(&host),
        }
        world.check(now_us)?;
    }
    Ok(world)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(calm: bool) -> Args {
        Args {
            span: Span {
                seed: 1,
                histories: 1,
                trace: false,
            },
            hosts: 8,
            guests: 80,
            days: 1,
            threshold: 3,
            calm,
        }
    }

    #[test]
    fn drs_feeds_the_guests_and_rests() {
        let tally = history(&args(true), 1, &mut Trace::default()).expect("a sound history");
        assert!(tally.starved * 2 < tally.starved_without, "{tally:?}");
        assert!(tally.moves < tally.guest_days * 4, "{tally:?}");
        // A burst may send a guest away and another fetch it back, but not as a habit.
        assert!(tally.back_and_forth * 10 <= tally.moves, "{tally:?}");
    }

    #[test]
    fn failures_at_the_same_time_break_nothing_and_it_comes_to_rest() {
        let mut all = Tally::default();
        for seed in 1..4 {
            let tally = history(&args(false), seed, &mut Trace::default());
            all.add(&tally.unwrap_or_else(|violation| panic!("seed {seed}: {violation}")));
        }
        assert!(all.deaths > 2 && all.restarts > all.deaths, "{all:?}");
        assert!(
            all.promises > 0 && all.starved < all.starved_without,
            "{all:?}"
        );
    }
}
