//! `bench TABLE...` prints the tables asked for: ours beside its peers, medians and ratios.

mod boot;
mod datastore;
mod disk;
mod migrate;
mod peer;
mod resident;
mod running;
mod soak;
mod stats;
mod table;

use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Parser, Subcommand};
use vmm_core::migration::CONNECTIONS_MAX;

use migrate::Wish;

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
    /// Heartbeats, the gate, stopping and taking over, on an XFS of its own (needs root).
    Datastore {
        /// How often the guests' storage falls silent.
        #[arg(long, default_value_t = datastore::DEFAULT_RUNS, value_parser = clap::value_parser!(u32).range(1..=1000))]
        runs: u32,
    },
    /// Live migration over loopback: time, blackout as the guest sees it, bytes, processor time.
    Migrate {
        /// Measured migrations of each peer in each case.
        #[arg(long, default_value_t = migrate::DEFAULT_RUNS, value_parser = clap::value_parser!(u32).range(1..=1000))]
        runs: u32,
        /// Our binary; the one beside this program if not given.
        #[arg(long)]
        vmm: Option<PathBuf>,
        /// Data connections of ours.
        #[arg(long, default_value_t = migrate::DEFAULT_CONNECTIONS, value_parser = clap::value_parser!(u32).range(1..=i64::from(CONNECTIONS_MAX)))]
        connections: u32,
        /// Processors of the guest, which share its work.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
        cpus: u32,
        /// Only the cases whose names contain this.
        #[arg(long, value_name = "WORDS")]
        only: Option<String>,
        /// Ours only.
        #[arg(long)]
        alone: bool,
        /// Draw how ours went in this file (SVG).
        #[arg(long, value_name = "FILE")]
        plot: Option<PathBuf>,
    },
    /// What fio in a guest gets of its disk, on an emulated host of the lab.
    Disk {
        /// Measured passes of each over all jobs; one more before them makes every block exist.
        #[arg(long, default_value_t = disk::DEFAULT_RUNS, value_parser = clap::value_parser!(u32).range(1..=1000))]
        runs: u32,
        /// Where the images lie.
        #[arg(long, value_enum, default_value = "own")]
        place: disk::Place,
    },
    /// Migrations by the thousand, some cancelled, some with a side killed or a connection cut at a
    /// random moment: exactly one side runs the guest afterwards, and every page is verified.
    Soak {
        /// Migrations.
        #[arg(long, default_value_t = 1000)]
        moves: u64,
        /// Of the acts and their moments; of the clock if not given.
        #[arg(long)]
        seed: Option<u64>,
        /// Our binary; the one beside this program if not given.
        #[arg(long)]
        vmm: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let Arguments { table } = Arguments::parse();
    let printed = match table {
        Table::All => {
            let beside = std::env::current_exe().ok();
            let migrations = Wish {
                plot: beside.map(|program| program.with_file_name("migrate.svg")),
                ..Wish::default()
            };
            // One that fails takes nothing from the others.
            let printed = [
                print(boot::run(DEFAULT_RUNS, None)),
                print(migrate::run(migrations)),
                print(disk::run(disk::DEFAULT_RUNS, disk::Place::Own)),
                print(datastore::run(datastore::DEFAULT_RUNS)),
            ];
            let failed: Vec<String> = printed.into_iter().filter_map(Result::err).collect();
            if failed.is_empty() {
                Ok(())
            } else {
                Err(failed.join("; "))
            }
        }
        Table::Boot { runs, vmm } => print(boot::run(runs, vmm)),
        Table::Migrate {
            runs,
            vmm,
            connections,
            cpus,
            only,
            alone,
            plot,
        } => print(migrate::run(Wish {
            runs,
            vmm,
            connections,
            cpus,
            only,
            alone,
            plot,
        })),
        Table::Disk { runs, place } => print(disk::run(runs, place)),
        Table::Datastore { runs } => print(datastore::run(runs)),
        Table::Soak { moves, seed, vmm } => soak_words(moves, seed, vmm),
    };
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn soak_words(moves: u64, seed: Option<u64>, vmm: Option<PathBuf>) -> Result<(), String> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = seed.unwrap_or_else(|| since.map_or(1, |since| since.as_micros() as u64));
    let beside = std::env::current_exe().map_err(|error| error.to_string())?;
    let vmm = vmm.unwrap_or_else(|| beside.with_file_name("vmm"));
    println!("{}", soak::run(&soak::Wish { moves, seed, vmm })?);
    Ok(())
}

/// A table as soon as it is there; the next one takes a while.
fn print(table: Result<String, impl Display>) -> Result<(), String> {
    println!("{}", table.map_err(|error| error.to_string())?);
    Ok(())
}
