//! The words of the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use cluster_core::model::Priority;

use crate::drs::cli::DrsVerb;
use crate::maintenance::cli::{ClusterVerb, MaintenanceArguments};
use crate::migration::cli::MigrateArguments;
use crate::rules::cli::RulesVerb;

/// Where the agent of this host answers.
const LOCAL_SOCKET: &str = "/run/godwit/agent.sock";

/// See and steer a Godwit cluster, from any of its hosts.
#[derive(Debug, Parser)]
#[command(name = "godwit", version, arg_required_else_help = true)]
pub struct Arguments {
    /// Socket of the agent to ask.
    #[arg(long, global = true, env = "GODWIT_SOCKET", default_value = LOCAL_SOCKET)]
    pub socket: PathBuf,
    /// Print JSON for scripts instead of tables for people.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// The whole cluster on one screen: health, reserve, what is wrong and what to do.
    Status,
    /// List the hosts.
    Hosts,
    /// List the guests.
    Guests,
    /// List the images that guests can be made from.
    Images,
    /// Show what happened and why, the newest last.
    Events {
        /// How many.
        #[arg(short = 'n', long, default_value_t = 20)]
        count: u64,
    },
    /// Make a guest from an image.
    Create(CreateArguments),
    /// Start a guest on the best host with room.
    Start {
        /// The guest; the beginning of its name is enough.
        guest: String,
    },
    /// Stop a guest: press its power button, and cut its power when it takes too long.
    Stop {
        /// The guest; the beginning of its name is enough.
        guest: String,
        /// Seconds from the button to the cut; 0 cuts at once.
        #[arg(long, default_value_t = 120)]
        grace: u64,
    },
    /// Have a guest stand still where it is; its memory stays.
    Pause {
        /// The guest; the beginning of its name is enough.
        guest: String,
    },
    /// Let a paused guest go on.
    Resume {
        /// The guest; the beginning of its name is enough.
        guest: String,
    },
    /// Reset a running guest: it boots again on the same host.
    Reboot {
        /// The guest; the beginning of its name is enough.
        guest: String,
    },
    /// Have a guest's serial console on this terminal; control and ] leaves.
    Console {
        /// The guest; the beginning of its name is enough.
        guest: String,
    },
    /// Migrate a running guest to another host without stopping it.
    Migrate(MigrateArguments),
    /// Delete a stopped guest and its disks.
    Delete {
        /// The guest, by its full name.
        guest: String,
    },
    /// Empty a host for maintenance, or forget one.
    #[command(subcommand)]
    Host(HostVerb),
    /// Look after the cluster as a whole.
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// See and steer how the cluster balances itself.
    #[command(subcommand)]
    Drs(DrsVerb),
    /// Say where guests run: together, apart, on which hosts, with what guaranteed.
    #[command(subcommand)]
    Rules(RulesVerb),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// What to do with a host.
#[derive(Debug, Subcommand)]
pub enum HostVerb {
    /// Take a dead host off the cluster's list.
    Forget {
        /// The host.
        host: String,
    },
    /// Move all guests off a host, by live migration, and keep new ones away from it.
    Maintenance(MaintenanceArguments),
}

/// A new guest.
#[derive(Debug, Args)]
pub struct CreateArguments {
    /// Its name.
    pub name: String,
    /// The image it is made from; `godwit images` lists them.
    #[arg(long)]
    pub image: String,
    /// Virtual processors.
    #[arg(long, default_value_t = 1)]
    pub cpus: u32,
    /// Memory: a number with M or G.
    #[arg(long, default_value = "512M", value_parser = parse_memory)]
    pub memory: u64,
    /// Copy the image's disk instead of building on it.
    #[arg(long)]
    pub copy: bool,
    /// Kernel command line instead of the image's.
    #[arg(long)]
    pub cmdline: Option<String>,
    /// Order of restart after a failure.
    #[arg(long, value_enum, default_value_t = PriorityName::Medium)]
    pub priority: PriorityName,
    /// Do not restart it when its host is lost.
    #[arg(long)]
    pub unprotected: bool,
    /// Processor time guaranteed to it, in thousandths of a core.
    #[arg(long, default_value_t = 0)]
    pub reserve_mcpu: u64,
    /// Only make it; do not start it.
    #[arg(long)]
    pub no_start: bool,
}

/// The names of [`Priority`].
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PriorityName {
    /// Before all others.
    Highest,
    /// Early.
    High,
    /// The default.
    Medium,
    /// Late.
    Low,
    /// After all others.
    Lowest,
}

impl From<PriorityName> for Priority {
    fn from(name: PriorityName) -> Self {
        match name {
            PriorityName::Highest => Self::Highest,
            PriorityName::High => Self::High,
            PriorityName::Medium => Self::Medium,
            PriorityName::Low => Self::Low,
            PriorityName::Lowest => Self::Lowest,
        }
    }
}

/// `512M`, `4G`, or plain MiB.
fn parse_memory(text: &str) -> Result<u64, String> {
    let (digits, mib_each) = match text.as_bytes().last() {
        Some(b'M' | b'm') => (&text[..text.len() - 1], 1),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 1024),
        _ => (text, 1),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(mib_each))
        .filter(|mib| *mib > 0)
        .ok_or_else(|| "write it as 512M or 4G".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn memory_is_read_in_mib() {
        assert_eq!(parse_memory("512M"), Ok(512));
        assert_eq!(parse_memory("4G"), Ok(4096));
        assert_eq!(parse_memory("64"), Ok(64));
        for bad in ["", "G", "0", "-1M", "99999999999999999G", "1T"] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }
}
