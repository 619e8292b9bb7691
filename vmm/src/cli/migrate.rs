//! `vmm migrate`: asks a guest's VMM to move it, and shows how that goes.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::Args;
use vmm_core::converge::Goal;
use vmm_core::migration::{CONNECTIONS_AUTO, CONNECTIONS_MAX, Forecast, Migrate, Phase, Progress};

use super::ctl::request;

const PATH: &str = "/v1/migration";
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub struct Arguments {
    /// The guest's API socket.
    #[arg(long, value_name = "PATH")]
    api_socket: PathBuf,
    /// Where `vmm receive` waits on the other host: HOST:PORT.
    #[arg(long)]
    to: String,
    /// Connections that carry memory: 1 to 16, or `auto`, by the source's processors.
    #[arg(long, value_name = "N|auto", default_value = "auto", value_parser = connections)]
    connections: u32,
    /// The guest shall not stand still for longer than this, in milliseconds.
    #[arg(long, default_value_t = 10)]
    blackout_max_ms: u64,
    /// Move it even if it has to stand still for longer.
    #[arg(long)]
    accept_longer: bool,
    /// Most bytes per second of all connections together; 0: as fast as it goes.
    #[arg(long, default_value_t = 0)]
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
    let ms = |us: u64| us as f64 / 1000.0;
    println!(
        "moved in {} ms: blackout {:.1} ms (for the guest {:.1}, predicted {:.1}), {} MiB in {} rounds{}",
        summary.total_us / 1000,
        ms(summary.blackout_us),
        ms(summary.guest_blackout_us),
        ms(summary.predicted_blackout_us),
        summary.sent_bytes >> 20,
        summary.rounds,
        if summary.verified {
            ", memory verified"
        } else {
            ""
        },
    );
    let steps = summary.steps;
    println!(
        "of the blackout: stopping {:.2} ms, memory {:.2}, state {:.2}, pouring it in {:.2}, commit {:.2}, start {:.2}",
        ms(steps.stop_us),
        ms(steps.memory_us),
        ms(steps.save_us),
        ms(steps.pour_us),
        ms(steps.commit_us),
        ms(steps.start_us),
    );
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
    loop {
        let body = request(&arguments.api_socket, "GET", PATH, None)?.body()?;
        let progress: Progress =
            serde_json::from_slice(&body).map_err(|error| format!("a damaged answer: {error}"))?;
        if shows {
            eprint!("\r{}    ", line(&progress));
        }
        if matches!(
            progress.phase,
            Phase::Done | Phase::Failed | Phase::Uncertain | Phase::Rehearsed
        ) {
            if shows {
                eprintln!();
            }
            return Ok(progress);
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// How far it is, on one line.
fn line(progress: &Progress) -> String {
    let so_far = format!(
        "{:?}: round {}, {} MiB sent at {} MiB/s, {} MiB to look at",
        progress.phase,
        progress.round,
        progress.sent_bytes >> 20,
        progress.rate >> 20,
        progress.left_bytes >> 20,
    );
    let eta = progress
        .eta_ms
        .map(|ms| format!(", {:.1} s to go", ms as f64 / 1000.0));
    let eta = eta.unwrap_or_default();
    // The first round says how fast the guest is.
    if progress.predicted_blackout_us == 0 {
        return so_far + &eta;
    }
    format!(
        "{so_far}{eta}; dirtied at {} MiB/s, blackout {:.1} ms if now",
        progress.dirty_rate >> 20,
        progress.predicted_blackout_us as f64 / 1000.0
    )
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
    fn the_line_says_what_is_known() {
        let mut progress = Progress {
            phase: Phase::Copying,
            round: 1,
            sent_bytes: 5 << 20,
            left_bytes: 300 << 20,
            rate: 0,
            dirty_bytes: 0,
            dirty_rate: 0,
            eta_ms: None,
            predicted_blackout_us: 0,
            summary: None,
            forecast: None,
            error: None,
        };
        assert!(line(&progress).ends_with("5 MiB sent at 0 MiB/s, 300 MiB to look at"));
        (progress.rate, progress.predicted_blackout_us) = (100 << 20, 7_100);
        (progress.dirty_rate, progress.eta_ms) = (50 << 20, Some(6_000));
        let said = line(&progress);
        let expected = "at 100 MiB/s, 300 MiB to look at, 6.0 s to go; dirtied at 50 MiB/s";
        assert!(said.contains(expected), "{said}");
        assert!(said.ends_with("blackout 7.1 ms if now"), "{said}");
    }
}
