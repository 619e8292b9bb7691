//! `vmm migrate`: asks a guest's VMM to move it, and shows how that goes.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::Args;
use rustix::stdio::stderr;
use rustix::termios::tcgetwinsize;
use vmm_core::converge::Goal;
use vmm_core::migration::{CONNECTIONS_AUTO, CONNECTIONS_MAX, Forecast, Migrate, Phase, Progress};

use super::ctl::request;
use super::options::address;

const PATH: &str = "/v1/migration";
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Of a terminal that does not say how wide it is.
const COLUMNS: u16 = 80;
/// Clears from here to the end of the line (ECMA-48, `EL`).
const CLEAR_REST: &str = "\x1b[K";

#[derive(Debug, Args)]
pub struct Arguments {
    /// The guest's API socket.
    #[arg(long, value_name = "PATH")]
    api_socket: PathBuf,
    /// Where `vmm receive` waits on the other host: HOST:PORT.
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    to: String,
    /// Connections that carry memory: 1 to 16, or `auto`, by the source's processors.
    #[arg(long, value_name = "N|auto", default_value = "auto", value_parser = connections)]
    connections: u32,
    /// The guest shall not stand still for longer than this, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..))]
    blackout_max_ms: u64,
    /// Move it even if it has to stand still for longer.
    #[arg(long)]
    accept_longer: bool,
    /// Most bytes per second of all connections together; 0: as fast as it goes.
    #[arg(long, value_name = "BYTES/S", default_value_t = 0, value_parser = bytes_per_second)]
    bandwidth_max: u64,
    /// Compare a hash of all memory on both sides before the commit.
    #[arg(long)]
    verify: bool,
    /// Directory with the certificates for mutual TLS; plain TCP without one.
    #[arg(long)]
    tls_dir: Option<PathBuf>,
    /// Move nothing: check everything against the target, measure the link and how fast the
    /// guest dirties its memory, and tell how long it would take.
    #[arg(long)]
    dry_run: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

fn bytes_per_second(said: &str) -> Result<u64, String> {
    let remedy = "write bytes per second as a number, such as 125000000 for 1 Gbit/s, or 0 for as \
                  fast as it goes";
    said.parse().map_err(|_| remedy.to_owned())
}

fn connections(said: &str) -> Result<u32, String> {
    match said.parse() {
        _ if said == "auto" => Ok(CONNECTIONS_AUTO),
        Ok(number @ 1..=CONNECTIONS_MAX) => Ok(number),
        _ => Err(format!("neither `auto` nor 1 to {CONNECTIONS_MAX}")),
    }
}

pub fn main(arguments: &Arguments) -> Result<(), String> {
    let wish = Migrate {
        to: arguments.to.clone(),
        connections: arguments.connections,
        goal: Goal {
            blackout_max_us: arguments.blackout_max_ms.saturating_mul(1000),
            accept_longer: arguments.accept_longer,
        },
        bandwidth_max: arguments.bandwidth_max,
        verify: arguments.verify,
        tls_dir: arguments
            .tls_dir
            .as_ref()
            .map(|dir| dir.to_string_lossy().into_owned()),
        dry_run: arguments.dry_run,
    };
    let body = serde_json::to_vec(&wish).map_err(|error| error.to_string())?;
    request(&arguments.api_socket, "PUT", PATH, Some(&body))?.body()?;
    let shows = std::io::stderr().is_terminal() && !arguments.json;
    let last = follow(arguments, shows)?;
    if let Some(error) = last.error {
        return Err(match last.phase {
            Phase::Uncertain => format!("{error}; the guest stands still on this host"),
            _ if arguments.dry_run => format!("the guest cannot move there: {error}"),
            _ => format!("the guest stays on this host: {error}"),
        });
    }
    if let Some(forecast) = last.forecast {
        return tell(&forecast, arguments.json);
    }
    let summary = last
        .summary
        .ok_or("the guest's VMM ended before it told how it went")?;
    if arguments.json {
        println!(
            "{}",
            serde_json::to_string(&summary).map_err(|error| error.to_string())?
        );
        return Ok(());
    }
    println!("moved in {}", summary.words());
    println!("of the blackout, in ms: {}", summary.steps.words());
    Ok(())
}

/// What a dry run foretells; an error when the guest would not move.
fn tell(forecast: &Forecast, json: bool) -> Result<(), String> {
    if json {
        let json = serde_json::to_string(forecast).map_err(|error| error.to_string())?;
        println!("{json}");
    } else {
        println!("{}", forecast.words());
    }
    if forecast.gives_up {
        return Err(
            "the guest would stay on this host: it dirties memory faster than it can be sent; \
             allow a longer blackout with --accept-longer, or try when it is less busy"
                .to_owned(),
        );
    }
    Ok(())
}

/// Until it is over.
fn follow(arguments: &Arguments, shows: bool) -> Result<Progress, String> {
    let mut line = Line::default();
    loop {
        let body = request(&arguments.api_socket, "GET", PATH, None)
            .and_then(|mut answer| answer.body())
            .map_err(|why| {
                format!("{why}; it was moving its guest: look for that on both hosts")
            })?;
        let progress: Progress =
            serde_json::from_slice(&body).map_err(|error| format!("a damaged answer: {error}"))?;
        if shows {
            line.show(&progress.words());
        }
        if matches!(
            progress.phase,
            Phase::Done | Phase::Failed | Phase::Uncertain | Phase::Rehearsed
        ) {
            return Ok(progress);
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// A line of the terminal that is written over and over; it stays when this is dropped.
#[derive(Default)]
struct Line {
    is_begun: bool,
}

impl Line {
    fn show(&mut self, words: &str) {
        let columns = tcgetwinsize(stderr()).map_or(COLUMNS, |size| size.ws_col);
        // A longer one would wrap, and not be written over.
        let fits = usize::from(if columns == 0 { COLUMNS } else { columns }).saturating_sub(1);
        let words: String = words.chars().take(fits).collect();
        eprint!("\r{words}{CLEAR_REST}");
        self.is_begun = true;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.is_begun {
            eprintln!();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_a_few_or_left_to_the_source() {
        let read = ["auto", "1", "16"].map(|said| connections(said).unwrap());
        assert_eq!(read, [CONNECTIONS_AUTO, 1, 16]);
        for said in ["0", "17", "many"] {
            connections(said).unwrap_err();
        }
    }

    #[test]
    fn a_rate_that_is_no_number_is_answered_by_one() {
        assert_eq!(bytes_per_second("125000000"), Ok(125_000_000));
        let error = bytes_per_second("fast").unwrap_err();
        assert!(error.contains("such as 125000000"), "{error}");
    }
}
