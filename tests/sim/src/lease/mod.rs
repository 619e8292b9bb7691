//! The lease: several hosts, one guest, every fault the protocol claims to survive.

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

pub use rules::{Broken, Rules};
use world::World;

use crate::harness::{Failure, Span, run_parallel, verdict};

/// Options of `sim lease`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    span: Span,
    /// Break this rule of the protocol: the simulator must find a violation.
    #[arg(long)]
    broken: Option<Broken>,
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
    let (result, tally) = explore(&args.span, Rules(args.broken));
    println!("{tally:?}");
    verdict("lease", &args.span, &result)
}
