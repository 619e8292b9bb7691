//! The cluster under faults: real brains, leases, holds and observers on fake hosts, storage
//! and network.
//!
//! Histories come in four kinds, by seed: one host loses its power (how long until its
//! guests are being restarted?), the leader does, nothing worse than loss bursts and short
//! freezes happens (nobody may fail over), and everything at random.

mod checks;
mod claims;
mod event;
mod faults;
mod guests;
mod host;
mod inventory;
mod leases;
mod life;
mod reading;
mod storage;
mod world;

use std::process::ExitCode;

use crate::harness::{Failure, Span, Trace, run_parallel, verdict};
use world::World;

/// Options of `sim ha`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    span: Span,
    /// How many hosts; by default 2 to 6, by the seed.
    #[arg(long)]
    hosts: Option<u64>,
    /// Guests per host.
    #[arg(long, default_value_t = 4)]
    guests: u64,
    /// Only this kind of history.
    #[arg(long)]
    kind: Option<Kind>,
    /// Disks can be fenced at a takeover, so that the short watch is enough; by default
    /// every second history of four.
    #[arg(long)]
    fencing: Option<bool>,
}

/// What happens in a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// One host that does not lead loses its power.
    Crash,
    /// The leader loses its power.
    LeaderCrash,
    /// Bursts of 30 % loss, freezes of 400 ms: no failure.
    Calm,
    /// Everything.
    Random,
}

impl Kind {
    fn of(seed: u64) -> Self {
        match seed % 4 {
            0 => Self::Crash,
            1 => Self::LeaderCrash,
            2 => Self::Calm,
            _ => Self::Random,
        }
    }
}

/// What histories went through.
#[derive(Debug, Default)]
pub struct Tally {
    events: u64,
    starts: u64,
    takeovers: u64,
    refused: u64,
    leaders: u64,
    faults: u64,
    /// From a power cut to the first order to restart one of its guests, in milliseconds:
    /// (leader cut, fencing, time).
    restarts: Vec<(bool, bool, u64)>,
    /// The same until the last of its guests was being restarted.
    last_restarts: Vec<u64>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.events += other.events;
        self.starts += other.starts;
        self.takeovers += other.takeovers;
        self.refused += other.refused;
        self.leaders += other.leaders;
        self.faults += other.faults;
        self.restarts.extend(other.restarts);
        self.last_restarts.extend(other.last_restarts);
    }

    fn print(&self) {
        println!(
            "{} events, {} faults, {} starts, {} of them takeovers, {} refused, {} leaders",
            self.events, self.faults, self.starts, self.takeovers, self.refused, self.leaders
        );
        for (leader, who) in [(false, "a host"), (true, "the leader")] {
            for (fencing, how) in [(false, "without fencing"), (true, "with fencing")] {
                let times = self
                    .restarts
                    .iter()
                    .filter(|r| (r.0, r.1) == (leader, fencing));
                let times: Vec<u64> = times.map(|r| r.2).collect();
                let what = format!("power cut of {who} to restart begun, {how}");
                print_times(&what, times);
            }
        }
        print_times(
            "power cut to the last restart begun",
            self.last_restarts.clone(),
        );
    }
}

fn print_times(what: &str, mut times: Vec<u64>) {
    times.sort_unstable();
    let Some(worst) = times.last() else { return };
    let at = |permille: usize| times[times.len() * permille / 1000];
    println!(
        "{what}: p50 {} ms, p90 {} ms, p99 {} ms, worst {worst} ms ({} cases)",
        at(500),
        at(900),
        at(990),
        times.len()
    );
}

/// Runs histories until one breaks an invariant.
pub fn explore(args: &Args) -> (Result<(), Failure>, Tally) {
    let mut tally = Tally::default();
    let one = |seed, trace: &mut Trace| World::new(args, seed).run(trace);
    let result = run_parallel(&args.span, one, |one| tally.add(one));
    (result, tally)
}

/// `sim ha`.
pub fn main(args: &Args) -> ExitCode {
    let (result, tally) = explore(args);
    tally.print();
    verdict("ha", &args.span, &result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histories(seed: u64, histories: u64, kind: Option<Kind>) -> Args {
        Args {
            span: Span {
                seed,
                histories,
                trace: false,
            },
            hosts: None,
            guests: 4,
            kind,
            fencing: None,
        }
    }

    /// An agent dies, then the last guest of its host ends: nobody beats any more.
    #[test]
    fn a_host_without_any_process_of_ours_is_not_well() {
        let (result, _) = explore(&histories(592, 2, Some(Kind::Random)));
        assert_eq!(result, Ok(()));
    }

    #[test]
    fn every_kind_of_history_is_sound_and_restarts_begin_in_time() {
        let (result, tally) = explore(&histories(1, 24, None));
        assert_eq!(result, Ok(()));
        assert!(tally.takeovers > 0 && tally.leaders > 0);
        for (leader, fencing, took_ms) in tally.restarts {
            let most = if fencing { 2500 } else { 4000 };
            let who = if leader { "the leader" } else { "a host" };
            assert!(took_ms <= most, "{took_ms} ms after the loss of {who}");
        }
    }
}
