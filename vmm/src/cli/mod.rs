//! The command line: a file for each verb.

mod check;
mod completions;
pub mod ctl;
mod migrate;
mod options;
mod receive;
mod run;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use vmm_core::compat::CpuFeatures;
use vmm_core::lifecycle::Ending;

use crate::drive::say;
use crate::error::one_line;
use crate::vcpu::cpuid;

/// Runs one guest on Linux KVM.
#[derive(Debug, Parser)]
#[command(name = "vmm", version, about, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_CODES: &str = "\
Exit codes of `vmm run`:
  0   the guest was switched off
  1   something on this side failed; the last line says what
  2   the command line is wrong
  10  the guest's kernel panicked
  11  the guest's processor gave up (triple fault)
  12  the right to run the guest went to another host
  13  the guest moved to another host";

/// Exit code for what clap refuses.
const WRONG_COMMAND_LINE: u8 = 2;

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a guest, from a spec or from flags.
    Run(Box<run::Arguments>),
    /// Control a running guest.
    Ctl(ctl::Arguments),
    /// Examine this host: what will work, what will not, and what helps.
    Check,
    /// Print what guests' processors can do on this host, for `vmm run --cpu-features`.
    CpuFeatures,
    /// Print the description of the control API (OpenAPI 3.1).
    Openapi,
    /// Move a running guest to the VMM that waits for it on another host.
    Migrate(migrate::Arguments),
    /// Wait for a guest that another host's VMM sends, and run it.
    Receive(Box<receive::Arguments>),
    /// Print completions for a shell.
    Completions(completions::Arguments),
}

/// The whole program.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    start_log();
    let ending = match arguments.verb {
        Verb::Run(arguments) => run::main(*arguments),
        Verb::Ctl(arguments) => ctl::main(&arguments).map(|()| Ending::PoweredOff),
        Verb::Check => check::main().map(|()| Ending::PoweredOff),
        Verb::CpuFeatures => cpu_features().map(|()| Ending::PoweredOff),
        Verb::Openapi => {
            print!("{}", crate::api::document());
            Ok(Ending::PoweredOff)
        }
        Verb::Migrate(arguments) => migrate::main(&arguments).map(|()| Ending::PoweredOff),
        Verb::Receive(arguments) => receive::main(&arguments),
        Verb::Completions(arguments) => {
            completions::main(&arguments, &mut Arguments::command());
            Ok(Ending::PoweredOff)
        }
    };
    match ending {
        Ok(ending) => ExitCode::from(ending.code()),
        Err(line) => {
            say(&line);
            ExitCode::from(Ending::Failed.code())
        }
    }
}

/// A wrong command line, on one line; clap's own answer to a question for help.
fn refuse(error: &clap::Error) -> ExitCode {
    let is_question =
        !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if is_question {
        error.exit();
    }
    let text = error.render().to_string();
    // What follows the first paragraph is the usage and advice that fits everything.
    let words = text
        .lines()
        .take_while(|line| !line.is_empty())
        .flat_map(str::split_whitespace);
    let line = words.collect::<Vec<_>>().join(" ");
    let line = if error.kind() == ErrorKind::ArgumentConflict && line.contains("[SPEC]") {
        "a spec file says all that these flags say; give the one or the others"
    } else {
        line.trim_start_matches("error: ")
    };
    let verb = std::env::args().nth(1);
    let verb = verb.filter(|verb| Arguments::command().find_subcommand(verb).is_some());
    let help = verb.map_or("vmm --help".to_owned(), |verb| format!("vmm {verb} --help"));
    say(&format!("{line}; see `{help}`"));
    ExitCode::from(WRONG_COMMAND_LINE)
}

/// Warnings go to the standard error; `VMM_LOG=debug` shows more.
fn start_log() {
    let level = std::env::var("VMM_LOG").ok();
    let level = level
        .and_then(|level| level.parse().ok())
        .unwrap_or(tracing::Level::WARN);
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

fn cpu_features() -> Result<(), String> {
    let kvm = crate::kvm::open().map_err(|error| one_line(&error))?;
    let supported = cpuid::supported(&kvm).map_err(|error| one_line(&error))?;
    let shown = cpuid::of_processor(&supported, 0, 1, &[]);
    println!("{}", CpuFeatures::of(&cpuid::leaves(shown.as_slice())));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
