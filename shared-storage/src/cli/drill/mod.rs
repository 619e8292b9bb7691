//! Playing a host: holds a lease and writes numbered blocks under it, races for it, or changes
//! a spec. The lab puts real hosts, real storage and real faults around this.

mod blocks;
mod contend;
mod hold;
mod revise;

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use super::CliError;
use crate::clock::{DEFAULT_RUN_DIR, LocalHost, boottime_us};
use crate::datastore::Datastore;
use crate::error::StoreError;
use crate::keeper::{Keeper, Role};

const PATIENCE: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(10);
#[derive(Debug, clap::Subcommand)]
pub(super) enum Drill {
    /// Make the guest for the others.
    Prepare {
        /// The guest.
        guest: String,
    },
    /// Claim the lease as soon as that is allowed, and write numbered blocks under it until it
    /// is lost. Says every event in one line.
    Hold(Player),
    /// Claim and release in competition with others until the lease has seen enough epochs.
    Race {
        #[command(flatten)]
        player: Player,
        /// Stop at this epoch.
        #[arg(long, default_value_t = 2000)]
        epochs: u64,
    },
    /// Look at the blocks: all there, and never an older epoch after a newer one.
    Verify {
        /// The guest.
        guest: String,
        /// Lines `acked NUMBER EPOCH` that `hold` said.
        #[arg(long)]
        acked: Vec<PathBuf>,
    },
    /// Change a guest's spec again and again, beside others who do the same.
    Revise {
        /// The guest.
        guest: String,
        /// How often.
        #[arg(long)]
        times: u64,
        /// Who counts its changes in the spec.
        #[arg(long)]
        host: String,
    },
    /// Read a guest's spec over and over until it has a revision; it must never go back.
    Follow {
        /// The guest.
        guest: String,
        /// The revision.
        #[arg(long)]
        until: u64,
    },
    /// Remove the guest.
    Remove {
        /// The guest.
        guest: String,
    },
    /// Keep this host's heartbeat going without an agent, as a guest's process does.
    Beat(Player),
}

#[derive(Debug, clap::Args)]
pub(super) struct Player {
    /// The guest.
    guest: String,
    /// The host to be.
    #[arg(long)]
    host: String,
    /// Where the host's processes meet.
    #[arg(long, default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// Beat as a guest's process, which steps in for a silent agent.
    #[arg(long)]
    as_guest: bool,
}

pub(super) fn run(store: &Datastore, drill: &Drill) -> Result<ExitCode, CliError> {
    match drill {
        Drill::Prepare { guest } => {
            store.create_guest(guest, &toml::Table::new(), blocks::make_disk)?;
            Ok(ExitCode::SUCCESS)
        }
        Drill::Hold(player) => hold::hold(store, player),
        Drill::Race { player, epochs } => contend::race(store, player, *epochs),
        Drill::Verify { guest, acked } => blocks::verify(&store.guest(guest)?, acked),
        Drill::Revise { guest, times, host } => revise::revise(&store.guest(guest)?, *times, host),
        Drill::Follow { guest, until } => revise::follow(&store.guest(guest)?, *until),
        Drill::Remove { guest } => {
            store.remove_guest(guest)?;
            Ok(ExitCode::SUCCESS)
        }
        Drill::Beat(player) => {
            let keeper = keeper(store, player)?;
            say(&format!("beats as {}", keeper.host().name()));
            loop {
                thread::park();
            }
        }
    }
}

/// One line, with the host's own clock.
fn say(what: &str) {
    println!("{:.3} {what}", boottime_us() as f64 / 1e6);
}

fn keeper(store: &Datastore, player: &Player) -> Result<Keeper, StoreError> {
    let host = LocalHost::new(&player.host, &player.run_dir)?;
    let role = if player.as_guest {
        Role::Guest
    } else {
        Role::Agent
    };
    let keeper = Keeper::start(store, &host, role)?;
    keeper.wait_live(PATIENCE)?;
    Ok(keeper)
}
