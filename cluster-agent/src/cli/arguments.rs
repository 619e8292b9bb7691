//! The words of the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use super::guests::{CloneArguments, CreateArguments, EditArguments};
use crate::drs::cli::DrsVerb;
use crate::leaving::cli::LeaveArguments;
use crate::maintenance::cli::{ClusterVerb, MaintenanceArguments};
use crate::migration::cli::MigrateArguments;
use crate::rules::cli::RulesVerb;
use crate::settings::cli::ConfigVerb;
use crate::tokens::cli::TokenVerb;

/// Where the agent of this host answers.
const LOCAL_SOCKET: &str = "/run/godwit/agent.sock";

/// What `--help` says which agent is asked under, below a verb's own options.
const AGENT: &str = "Agent to ask";

/// See and steer a Godwit cluster, from any of its hosts.
#[derive(Debug, Parser)]
#[command(name = "godwit", version, arg_required_else_help = true)]
pub struct Arguments {
    /// Socket of the agent to ask.
    #[arg(long, global = true, help_heading = AGENT,
        env = "GODWIT_SOCKET", default_value = LOCAL_SOCKET)]
    pub socket: PathBuf,
    /// Agent to ask from afar: host:port, or a host; needs --token-file and --ca-file.
    #[arg(long, global = true, help_heading = AGENT,
        env = "GODWIT_SERVER", value_name = "HOST[:PORT]")]
    pub server: Option<String>,
    /// File with the token for --server; `godwit token create` on a host makes one.
    #[arg(long, global = true, help_heading = AGENT,
        env = "GODWIT_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// File with the certificate for --server; `godwit ca` on a host prints it.
    #[arg(long, global = true, help_heading = AGENT,
        env = "GODWIT_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Print JSON for scripts instead of tables for people.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// How a list is shown.
#[derive(Debug, Clone, Copy, Args)]
pub struct ListArguments {
    /// What was observed instead: processor, memory, disks, network.
    #[arg(long)]
    pub wide: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// The whole cluster on one screen: health, reserve, what is wrong and what to do.
    Status,
    /// List the hosts.
    Hosts(ListArguments),
    /// List the guests.
    Guests(ListArguments),
    /// List the images that guests can be made from.
    Images,
    /// Show what happened and why, the newest last.
    Events {
        /// How many.
        #[arg(short = 'n', long, default_value_t = 20)]
        count: u64,
        /// Go on with what happens from now on, until interrupted.
        #[arg(short, long)]
        follow: bool,
    },
    /// Make a guest from an image.
    Create(CreateArguments),
    /// Make a copy of a guest that is off: its settings and its disks, with addresses of its own.
    Clone(CloneArguments),
    /// Change what a guest is, or show it.
    Edit(EditArguments),
    /// Start a guest on the best host with room.
    Start {
        /// The guest; the beginning of its name is enough.
        guest: String,
        /// Start it on this host, if it has room and rules allow it.
        #[arg(long, value_name = "HOST")]
        on: Option<String>,
    },
    /// Stop a guest: press its power button, and cut its power when it takes too long.
    Stop {
        /// The guest; the beginning of its name is enough.
        guest: String,
        /// Seconds from the button to the cut, this once; 0 cuts at once [default: what `godwit
        /// edit --grace` set, else 120].
        #[arg(long)]
        grace: Option<u64>,
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
    /// Empty a host for maintenance, have one leave, or forget one.
    #[command(subcommand)]
    Host(HostVerb),
    /// See and change what holds for the whole cluster: admission, isolation, patience.
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Look after the cluster as a whole.
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// See and steer how the cluster balances itself.
    #[command(subcommand)]
    Drs(DrsVerb),
    /// Say where guests run: together, apart, on which hosts, with what guaranteed.
    #[command(subcommand)]
    Rules(RulesVerb),
    /// Let operators in who are on no host.
    #[command(subcommand)]
    Token(TokenVerb),
    /// Print the certificate by which this cluster is known, for --ca-file.
    Ca,
    /// Print the description of the API for programs (OpenAPI).
    Openapi,
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
    /// Have a host leave the cluster: its guests move away, it takes itself off the list and its
    /// agent ends.
    Leave(LeaveArguments),
    /// Move all guests off a host, by live migration, and keep new ones away from it.
    Maintenance(MaintenanceArguments),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }
}
