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
enum Model {}

// Until the first model is here there is no command to run.
#[allow(unreachable_code)]
fn main() -> ExitCode {
    match Cli::parse().model {}
}
