//! The lease: several hosts, one guest, every fault the protocol claims to survive.

mod crashes;
mod faults;
mod host;
mod network;
mod plan;
mod processes;
mod rules;
mod steps;
mod storage;
mod world;

use std::process::ExitCode;

use clap::ValueEnum;
pub use crashes::crash_everywhere;
pub use rules::{Broken, Rules};
use world::World;
pub use world::{ACT_AT_ONCE, LATE_WRITE};

use crate::harness::{Failure, Span, run_parallel, verdict};

/// Options of `sim lease`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    span: Span,
    /// Break this rule of the protocol: the simulator must find a violation.
    #[arg(long)]
    broken: Option<Broken>,
    /// Short histories without other faults, each of them once for every step and everything that
    /// can crash before it.
    #[arg(long)]
    crash_everywhere: bool,
}

/// What histories went through.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Events.
    pub events: u64,
    /// Times a guest was let run.
    pub runs: u64,
    /// Leases claimed from a holder that seemed gone.
    pub takeovers: u64,
    /// Hand-overs begun.
    pub hand_overs: u64,
    /// Holders that found their lease taken.
    pub lost: u64,
    /// Writes let through by the gate.
    pub writes: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.events += other.events;
        self.runs += other.runs;
        self.takeovers += other.takeovers;
        self.hand_overs += other.hand_overs;
        self.lost += other.lost;
        self.writes += other.writes;
    }
}

/// Runs histories until one breaks an invariant.
pub fn explore(span: &Span, rules: Rules) -> (Result<(), Failure>, Tally) {
    let mut tally = Tally::default();
    let result = run_parallel(
        span,
        |seed, trace| World::new(seed, rules).run(trace),
        |one| tally.add(one),
    );
    (result, tally)
}

/// `sim lease`.
pub fn main(args: &Args) -> ExitCode {
    let rules = Rules(args.broken);
    let (result, tally) = if args.crash_everywhere {
        crash_everywhere(&args.span, rules)
    } else {
        explore(&args.span, rules)
    };
    println!("{tally:?}");
    verdict(&replay(args), &args.span, &result)
}

/// The subcommand with all that changes its histories.
fn replay(args: &Args) -> String {
    let mut words = "lease".to_owned();
    if let Some(broken) = args.broken.and_then(|broken| broken.to_possible_value()) {
        words += " --broken ";
        words += broken.get_name();
    }
    if args.crash_everywhere {
        words += " --crash-everywhere";
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_breaks_the_same_rule() {
        let args = Args {
            span: Span {
                seed: 1,
                histories: 1,
                trace: false,
            },
            broken: Some(Broken::SentTime),
            crash_everywhere: true,
        };
        assert_eq!(replay(&args), "lease --broken sent-time --crash-everywhere");
    }
}
