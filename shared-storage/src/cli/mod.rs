//! The command `godwit-store`.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 something is wrong with the datastore or the
//! lease was lost.

mod bench;
mod drill;
mod image;
mod show;
mod size;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;
use storage_core::timing::Timing;

use crate::cluster_file::ClusterFile;
use crate::datastore::{Datastore, LEADER};
use crate::error::StoreError;
use crate::image::ImageError;
use crate::lease::LeaseFiles;

/// Something is wrong, though the command did what it was asked.
const FOUND_WRONG: u8 = 3;

/// Nobody waits longer for `status`.
const WATCH_MS_MAX: u64 = 60_000;

/// Look at a datastore, its guests and its leases.
#[derive(Debug, Parser)]
#[command(name = "godwit-store", version)]
struct Cli {
    /// The datastore: a directory that all hosts mount.
    #[arg(
        short,
        long,
        env = "GODWIT_DATASTORE",
        default_value = ".",
        global = true
    )]
    datastore: PathBuf,
    /// Answer in JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a datastore of an existing directory.
    Init {
        /// What people call the cluster.
        #[arg(long, default_value = "godwit")]
        name: String,
    },
    /// The cluster, its hosts and what the file system can do.
    Status {
        /// How long to watch the heartbeats, in milliseconds.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(..=WATCH_MS_MAX))]
        watch_ms: u64,
    },
    /// The guests, who holds them, and their disks.
    Guests,
    /// Look at a lease, or free it.
    #[command(subcommand)]
    Lease(LeaseCommand),
    /// Look at images, make them and change them.
    ///
    /// Images are named by their path in the datastore (images/debian/root.qcow2,
    /// guests/web1/disk0.raw); their format is the ending of the name: .raw, .img or .qcow2.
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Everything that is wrong with the datastore. Changes nothing.
    Check,
    /// Measure heartbeats, the gate, stopping and taking over, in a directory of its own.
    Bench(bench::Options),
    /// Play a host that holds or races for a lease, for tests.
    #[command(subcommand, hide = true)]
    Drill(drill::Drill),
}

#[derive(Debug, Subcommand)]
enum LeaseCommand {
    /// The epochs of a guest's lease that are kept, or the leadership's (`leader`).
    Show {
        /// The guest, or `leader`.
        guest: String,
    },
    /// Declare the holder gone. Only when it certainly does not run any more: switched off,
    /// not merely silent.
    Release {
        /// The guest, or `leader`.
        guest: String,
        /// Yes, it is certain.
        #[arg(long)]
        force: bool,
    },
}

/// Runs the command.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("godwit-store: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
    #[error("{0}")]
    Said(String),
}

fn run(cli: &Cli) -> Result<ExitCode, CliError> {
    if let Command::Init { name } = &cli.command {
        let cluster = ClusterFile::new(name, Timing::default());
        let store = Datastore::create(&cli.datastore, &cluster)?;
        return show::answer(cli, store.cluster(), || {
            format!(
                "{} is now the datastore of cluster {name}",
                cli.datastore.display()
            )
        });
    }
    if let Command::Bench(options) = &cli.command {
        return bench::run(cli, options);
    }
    let store = Datastore::open(&cli.datastore)?;
    match &cli.command {
        Command::Status { watch_ms } => show::status(cli, &store, *watch_ms),
        Command::Guests => show::guests(cli, &store),
        Command::Lease(LeaseCommand::Show { guest }) => {
            show::lease(cli, &files(&store, guest)?).map_err(|error| if_damaged(error, guest))
        }
        Command::Lease(LeaseCommand::Release { guest, force }) => {
            release(cli, &files(&store, guest)?, *force)
        }
        Command::Image(command) => image::run(cli, &store, command),
        Command::Check => show::check(cli, &store),
        Command::Drill(drill) => drill::run(&store, drill),
        Command::Init { .. } | Command::Bench(_) => Ok(ExitCode::SUCCESS),
    }
}

fn files(store: &Datastore, guest: &str) -> Result<LeaseFiles, CliError> {
    if guest == LEADER {
        return Ok(store.leader_lease());
    }
    match store.guest(guest) {
        Ok(dir) => Ok(dir.lease()),
        Err(StoreError::Missing(_)) => Err(CliError::Said(format!(
            "there is no guest {guest}; `godwit-store guests` lists them"
        ))),
        Err(error) => Err(error.into()),
    }
}

/// A damaged epoch holds its guest back for good, unless an operator knows that nobody runs it.
fn if_damaged(error: CliError, subject: &str) -> CliError {
    match error {
        CliError::Store(error) if error.is_damage() => CliError::Said(format!(
            "{error}; if {subject} certainly runs nowhere, free it: godwit-store lease release \
             {subject} --force"
        )),
        other => other,
    }
}

fn release(cli: &Cli, files: &LeaseFiles, force: bool) -> Result<ExitCode, CliError> {
    let subject = files.subject();
    let note = match files.last() {
        Ok(last) => {
            let holder = last.and_then(|last| last.holder);
            let Some(holder) = holder else {
                return Err(CliError::Said(format!("nobody holds {subject}")));
            };
            if !force {
                return Err(CliError::Said(format!(
                    "{holder} holds {subject}; if that host is certainly off, say so with --force"
                )));
            }
            format!("an operator declared {} gone", holder.host)
        }
        Err(error) if force && error.is_damage() => {
            "an operator declared whoever held it gone; the epoch before is damaged".into()
        }
        Err(error) => return Err(if_damaged(error.into(), subject)),
    };
    let record = files.force_free(&note)?;
    show::answer(cli, &record, || {
        format!("{subject} is free (epoch {})", record.epoch)
    })
}

fn print_json(answer: &impl Serialize) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, answer).map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}
