//! `bench TABLE...` prints the tables asked for: ours beside its peers, medians and ratios.

mod boot;
mod peer;
mod resident;
mod stats;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

const DEFAULT_RUNS: u32 = 10;

#[derive(Parser)]
#[command(about = "Measures ours beside its peers, in one run on one machine")]
struct Arguments {
    #[command(subcommand)]
    table: Table,
}

#[derive(Subcommand)]
enum Table {
    /// Every table, each with its default settings.
    All,
    /// From exec to the guest's first byte, and memory beyond the guest's, on the probe.
    Boot {
        /// Measured starts of each; one more of each before them warms the caches up.
        #[arg(long, default_value_t = DEFAULT_RUNS, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        runs: u32,
        /// Our binary; the one beside this program if not given.
        #[arg(long)]
        vmm: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let Arguments { table } = Arguments::parse();
    let printed = match table {
        Table::All => boot::run(DEFAULT_RUNS, None),
        Table::Boot { runs, vmm } => boot::run(runs, vmm),
    };
    match printed {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
