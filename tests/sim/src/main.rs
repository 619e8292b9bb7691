//! `sim`: runs seeded histories of a core and replays the one that failed.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs the real cores in a fake world and checks their invariants after every event.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    model: Model,
}

// Each model is one file of the library and one line here:
// `Name(sim::name::Args)`, whose `Args` flattens `sim::harness::Span`.
#[derive(Debug, Subcommand)]
enum Model {
    /// Leases on shared storage: never two holders.
    Lease(sim::lease::Args),
    /// Days of changing load with and without DRS.
    Drs(sim::drs::Args),
    /// Balancing beside Ganeti's hbal: quality and time, as a table.
    DrsBench(sim::drs_bench::Args),
    /// The cluster under faults: leaders, failures, restarts.
    Ha(sim::ha::Args),
}

fn main() -> ExitCode {
    match Cli::parse().model {
        Model::Lease(args) => sim::lease::main(&args),
        Model::Drs(args) => sim::drs::main(&args),
        Model::DrsBench(args) => sim::drs_bench::main(&args),
        Model::Ha(args) => sim::ha::main(&args),
    }
}
