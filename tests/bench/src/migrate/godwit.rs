//! A migration between two of our own processes.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use vmm::cli::ctl::request;
use vmm_core::converge::Goal;
use vmm_core::migration::{Migrate, Phase, Progress};

use super::case::{Case, MEMORY_MIB};
use super::guest::Guest;
use super::plot::Point;
use super::reference::Warm;
use super::{LIMIT, LOOK_EVERY, Moved, WARM_MIB, cpu};
use crate::running::Running;

const PATH: &str = "/v1/migration";

fn is_vcpu(thread: &str) -> bool {
    thread.starts_with("vcpu")
}

pub fn run(vmm: &Path, connections: u32, kernel: &Path, case: &Case) -> Result<Moved, String> {
    let dir = tempfile::tempdir().map_err(|error| format!("cannot make a directory: {error}"))?;
    let socket = dir.path().join("api");
    let source = start_source(vmm, kernel, &socket, case)?;
    let guest = Guest::find(source.id(), MEMORY_MIB)?;
    guest.wait_running()?;
    let warm = Warm::take(WARM_MIB).map_err(|error| format!("cannot take memory: {error}"))?;
    let (target, to) = start_target(vmm, &dir.path().join("target"))?;
    if case.at_rest {
        request(&socket, "PUT", "/v1/pause", None)?.body()?;
    }
    // The source ends by itself: what its processors have used is looked at as long as they live.
    let no_cpu = |error| format!("cannot read its processor time: {error}");
    let whole_s = |id| cpu::whole(id).map(|used| used.as_secs_f64());
    let processors = cpu::Processors::of(source.id(), is_vcpu).map_err(no_cpu)?;
    let mut processors_s = processors.used().as_secs_f64();
    let before_s = whole_s(source.id()).map_err(no_cpu)? - processors_s;
    let wish = Migrate {
        to,
        connections,
        goal: Goal {
            accept_longer: true,
            ..Goal::default()
        },
        bandwidth_max: 0,
        verify: false,
        tls_dir: None,
        dry_run: false,
    };
    let body = serde_json::to_vec(&wish).map_err(|error| error.to_string())?;
    let since_ns = guest.report()?.now_ns();
    drop(warm);
    let began = Instant::now();
    request(&socket, "PUT", PATH, Some(&body))?;
    let mut trace = Vec::new();
    let (rate, summary) = loop {
        std::thread::sleep(LOOK_EVERY);
        processors_s = processors.used().as_secs_f64().max(processors_s);
        let progress: Progress =
            serde_json::from_slice(&request(&socket, "GET", PATH, None)?.body()?)
                .map_err(|error| format!("a damaged answer: {error}"))?;
        trace.push(Point::new(began.elapsed(), &progress));
        if let Some(error) = progress.error {
            return Err(error);
        }
        if let (Phase::Done, Some(summary)) = (progress.phase, progress.summary) {
            // A guest at rest needs one round.
            break (progress.rate, summary);
        }
        if began.elapsed() > LIMIT {
            return Err("it does not end".to_owned());
        }
    };
    let total_ms = began.elapsed().as_secs_f64() * 1000.0;
    let source_s = whole_s(source.id()).map_err(no_cpu)? - processors_s - before_s;
    let target_s = cpu::without_guest(target.id(), is_vcpu).map_err(no_cpu)?;
    if case.at_rest {
        request(&dir.path().join("target"), "PUT", "/v1/resume", None)?.body()?;
    }
    let arrived = Guest::find(target.id(), MEMORY_MIB)?;
    let report = arrived.report_on_arrival()?;
    arrived.verify()?;
    Ok(Moved {
        total_ms,
        blackout_ms: Guest::blackout_ns(&report, since_ns) as f64 / 1e6,
        longest_gap_ms: report.longest_gap_since_ns(since_ns) as f64 / 1e6,
        sent_mib: summary.sent_bytes as f64 / f64::from(1 << 20),
        bulk_mib_s: rate as f64 / f64::from(1 << 20),
        cpu_s: source_s + target_s.as_secs_f64(),
        steps: Some(summary.steps),
        told_ms: summary.guest_blackout_us as f64 / 1000.0,
        predicted_ms: summary.predicted_blackout_us as f64 / 1000.0,
        trace,
    })
}

fn start_source(vmm: &Path, kernel: &Path, socket: &Path, case: &Case) -> Result<Running, String> {
    let mut command = Command::new(vmm);
    command.args(["run", "--console", "off", "--memory"]);
    command.args([&MEMORY_MIB.to_string(), "--cmdline", &case.cmdline()]);
    command.args(["--cpus", &case.cpus.to_string()]);
    command.arg("--kernel").arg(kernel);
    command.arg("--api-socket").arg(socket);
    start(&mut command).map(Running)
}

/// The target, and where it listens.
fn start_target(vmm: &Path, socket: &Path) -> Result<(Running, String), String> {
    let mut command = Command::new(vmm);
    command.args(["receive", "--console", "off", "--listen", "127.0.0.1:0"]);
    command.arg("--api-socket").arg(socket);
    let mut target = Running(start(command.stderr(Stdio::piped()))?);
    let mut line = String::new();
    let stderr = target.take_stderr().ok_or("no standard error")?;
    BufReader::new(stderr)
        .read_line(&mut line)
        .map_err(|error| format!("cannot hear where the target listens: {error}"))?;
    let to = line
        .trim()
        .strip_prefix("vmm: waiting for a guest on ")
        .ok_or_else(|| format!("the target says {line:?}"))?;
    Ok((target, to.to_owned()))
}

fn start(command: &mut Command) -> Result<Child, String> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot start it: {error}"))
}
