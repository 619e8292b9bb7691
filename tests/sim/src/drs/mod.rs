//! Days of changing load with and without DRS: does it feed the guests, and does it rest?
//!
//! Real cores (demand smoothing, `Drs` with its rounds, waves and rests, planner, rules, admission,
//! placement of restarts) in a world of hosts that share their cores as `score` has it. One step
//! is a minute; the leader looks every minute and whenever a migration ends, and automation is
//! full. A migration takes effect when its time is over, costs CPU on both ends meanwhile, and
//! fails now and then. Hosts have work of their own. Hosts die and come back, agents are lost,
//! leaders change with migrations under way, and operators empty hosts all the while; HA restarts
//! what was lost. In the end all is healed, loads stand still, and the cluster has to come to rest.

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
use load::Shape;
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
    /// All guests' loads are of this shape; otherwise of all shapes.
    #[arg(long, value_enum)]
    shape: Option<Shape>,
}

const MINUTE_US: u64 = 60_000_000;
const MINUTES_PER_DAY: u64 = 24 * 60;
/// Within so many minutes after the last failure the cluster has to be at rest.
const SETTLES_MINUTES: u64 = 180;

/// Of the moves for the balance no more go straight back than these, in a hundred; few hosts have
/// less to choose from.
const BACK_PERCENT: u64 = 15;

/// Cores of a host.
const HOST_MCPU: u64 = 24_000;

/// Moves for the balance.
#[derive(Debug, Default, Clone, Copy)]
pub struct Weighed {
    moves: u64,
    /// Those after a crooked start was evened out.
    late: u64,
    /// Those that went straight back.
    back: u64,
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
    /// Guests times minutes in which they starved, with DRS.
    starved_minutes: u64,
    /// The same with nothing ever moved.
    starved_minutes_without: u64,
    /// Moves that arrived, whatever for.
    moves: u64,
    /// Moves that failed.
    failed: u64,
    /// Those for the balance, by the shape of the guest's load.
    weighed: [Weighed; Shape::ALL.len()],
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
        self.starved_minutes += one.starved_minutes;
        self.starved_minutes_without += one.starved_minutes_without;
        self.moves += one.moves;
        self.failed += one.failed;
        for (sum, one) in self.weighed.iter_mut().zip(one.weighed) {
            sum.moves += one.moves;
            sum.late += one.late;
            sum.back += one.back;
        }
        self.guest_days += one.guest_days;
        self.deaths += one.deaths;
        self.restarts += one.restarts;
        self.minutes_down += one.minutes_down;
        self.promises += one.promises;
        self.settled_minutes = self.settled_minutes.max(one.settled_minutes);
    }

    /// Moves for the balance, of all shapes of load.
    fn weighed(&self) -> Weighed {
        let add = |sum: Weighed, one: &Weighed| Weighed {
            moves: sum.moves + one.moves,
            late: sum.late + one.late,
            back: sum.back + one.back,
        };
        self.weighed.iter().fold(Weighed::default(), add)
    }

    /// Guests are sent to and fro more than they may be.
    fn oscillates(&self) -> bool {
        let all = self.weighed();
        all.back * 100 > all.moves * BACK_PERCENT
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
    tell(&all);
    let told = harness::verdict("drs", &args.span, &result);
    if all.oscillates() {
        println!(
            "FAILED: more than {BACK_PERCENT} % of the moves for the balance went straight back"
        );
        return ExitCode::FAILURE;
    }
    told
}

/// All that was counted, for people.
fn tell(all: &Tally) {
    let ppm = |part: u64| part * 1_000_000 / all.wanted.max(1);
    let per_day = |part: u64| {
        let hundredths = part * 100 / all.guest_days.max(1);
        format!("{}.{:02}", hundredths / 100, hundredths % 100)
    };
    println!(
        "starved of demand: {} ppm with DRS, {} ppm without; minutes in which a guest starved, per \
         guest and day: {} with, {} without; moves per guest and day: {}, {} in all, {} more failed",
        ppm(all.starved),
        ppm(all.starved_without),
        per_day(all.starved_minutes),
        per_day(all.starved_minutes_without),
        per_day(all.moves),
        all.moves,
        all.failed
    );
    for (shape, of) in Shape::ALL.iter().zip(&all.weighed) {
        println!(
            "moves for the balance of guests with load {shape:?}: {}, {} of them after the first {} \
             minutes; straight back within an hour: {}",
            of.moves,
            of.late,
            world::EVENED_MINUTES,
            of.back
        );
    }
    println!(
        "{} hosts died, {} restarts, {} guest minutes down; the promise looked at after {} waves; \
         at rest {} minutes after the last failure at the latest",
        all.deaths, all.restarts, all.minutes_down, all.promises, all.settled_minutes
    );
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
    let of_shape = args.shape.map(|shape| [shape]);
    let shapes = of_shape.as_ref().map_or(&Shape::ALL[..], |one| one);
    let mut world = World::new(cluster, &mut rng, args.threshold, shapes);
    world.moves_fail = !args.calm;
    let cluster = world.cluster.clone();
    let mut still = World::new(cluster, &mut Rng::new(seed), args.threshold, shapes);
    still.never_moves = true;
    let minutes = args.days * MINUTES_PER_DAY;
    let faults = Faults::new(rng.split(), args.hosts, args.calm);
    let still = days(still, faults.clone(), minutes, &mut Trace::default())?;
    let mut world = days(world, faults, minutes, trace)?;
    world.tally.starved_without = still.tally.starved;
    world.tally.starved_minutes_without = still.tally.starved_minutes;
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
                    world.moves_fail = false;
                    world.live(minute, false);
                }
                // While guests are restarted, nothing is moved.
                if !world.restart_the_lost(trace, now_us)? {
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
            Event::Arrived(guest, number) => {
                world.arrive(now_us, &guest, number, trace);
                world.balance(now_us, &mut queue, trace)?;
            }
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
            shape: None,
        }
    }

    #[test]
    fn drs_feeds_the_guests_and_rests() {
        let tally = history(&args(true), 1, &mut Trace::default()).expect("a sound history");
        assert!(tally.starved * 2 < tally.starved_without, "{tally:?}");
        assert!(tally.moves < tally.guest_days * 4, "{tally:?}");
        // A burst may send a guest away and another fetch it back, but not as a habit.
        assert!(!tally.oscillates(), "{tally:?}");
    }

    /// Loads that rise and fall with the period of a planner that reacts too fast: beside others
    /// they are hardly followed. Where there is nothing else they are, and guests go to and fro,
    /// but each only some times a day, and hardly any starves.
    #[test]
    fn sawteeth_are_followed_within_bounds() {
        let mixed = history(&args(true), 1, &mut Trace::default()).expect("a sound history");
        let sawteeth = mixed.weighed[Shape::Sawtooth as usize];
        assert!(sawteeth.back * 10 <= sawteeth.moves, "{mixed:?}");
        let only = Args {
            shape: Some(Shape::Sawtooth),
            ..args(true)
        };
        let tally = history(&only, 1, &mut Trace::default()).expect("a sound history");
        assert!(tally.weighed().moves < tally.guest_days * 6, "{tally:?}");
        assert!(tally.starved * 100 < tally.starved_without, "{tally:?}");
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
