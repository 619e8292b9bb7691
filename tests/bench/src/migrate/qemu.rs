//! A migration between two processes of Debian's QEMU, each given its best settings.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use super::case::{Case, MEMORY_MIB};
use super::guest::{Guest, wait};
use super::reference::Warm;
use super::{LIMIT, LOOK_EVERY, Moved, WARM_MIB, cpu};
use crate::running::Running;

/// Multifd channels.
pub const CHANNELS: u32 = 4;
const PROGRAM: &str = "qemu-system-x86_64";
const DOWNTIME_LIMIT_MS: u32 = 10;
/// Bytes per second; its default of 128 MiB/s would be all that is measured.
const BANDWIDTH_MAX: u64 = 1 << 40;

fn is_vcpu(thread: &str) -> bool {
    thread.starts_with("CPU ")
}

/// Is there one?
pub fn version() -> Result<(), String> {
    let output = Command::new(PROGRAM).arg("--version").output();
    output
        .map(drop)
        .map_err(|error| format!("cannot start {PROGRAM}: {error}"))
}

pub fn run(multifd: Option<u32>, kernel: &Path, case: &Case) -> Result<Moved, String> {
    let dir = tempfile::tempdir().map_err(|error| format!("cannot make a directory: {error}"))?;
    let source = start(kernel, &dir.path().join("source"), case, &[])?;
    let target = start(
        kernel,
        &dir.path().join("target"),
        case,
        &["-incoming", "defer"],
    )?;
    let guest = Guest::find(source.process.id(), MEMORY_MIB)?;
    guest.wait_running()?;
    let warm = Warm::take(WARM_MIB).map_err(|error| format!("cannot take memory: {error}"))?;
    let (mut source, mut target) = (source, target);
    for side in [&mut source, &mut target] {
        side.prepare(multifd)?;
    }
    target.call("migrate-incoming", &json!({"uri": "tcp:127.0.0.1:0"}))?;
    let listening = target.call("query-migrate", &json!({}))?;
    let port = listening["socket-address"][0]["port"]
        .as_str()
        .ok_or_else(|| format!("the target does not say where it listens: {listening}"))?;
    let uri = format!("tcp:127.0.0.1:{port}");
    if case.at_rest {
        source.call("stop", &json!({}))?;
    }
    let cpu_before_s = cpu_s(&source)? + cpu_s(&target)?;
    let since_ns = guest.report()?.now_ns();
    drop(warm);
    let began = Instant::now();
    source.call("migrate", &json!({"uri": uri}))?;
    let ended = loop {
        std::thread::sleep(LOOK_EVERY);
        let progress = source.call("query-migrate", &json!({}))?;
        match progress["status"].as_str() {
            Some("completed") => break progress,
            Some("failed" | "cancelled") => return Err(format!("it failed: {progress}")),
            _ if began.elapsed() > LIMIT => return Err("it does not end".to_owned()),
            _ => {}
        }
    };
    let total_ms = began.elapsed().as_secs_f64() * 1000.0;
    let cpu_after_s = cpu_s(&source)? + cpu_s(&target)?;
    if case.at_rest {
        target.call("cont", &json!({}))?;
    }
    wait("the target to run", || {
        let status = target.call("query-status", &json!({}))?;
        Ok((status["running"] == json!(true)).then_some(()))
    })?;
    let arrived = Guest::find(target.process.id(), MEMORY_MIB)?;
    let report = arrived.report_on_arrival()?;
    arrived.verify()?;
    Ok(Moved {
        total_ms,
        blackout_ms: Guest::blackout_ns(&report, since_ns) as f64 / 1e6,
        longest_gap_ms: report.longest_gap_since_ns(since_ns) as f64 / 1e6,
        sent_mib: ended["ram"]["transferred"].as_f64().unwrap_or(f64::NAN) / f64::from(1 << 20),
        bulk_mib_s: f64::NAN,
        cpu_s: cpu_after_s - cpu_before_s,
        steps: None,
        told_ms: ended["downtime"].as_f64().unwrap_or(f64::NAN),
        // It promises its limit and no more.
        predicted_ms: f64::from(DOWNTIME_LIMIT_MS),
        trace: Vec::new(),
    })
}

fn cpu_s(side: &Side) -> Result<f64, String> {
    cpu::without_guest(side.process.id(), is_vcpu)
        .map(|used| used.as_secs_f64())
        .map_err(|error| format!("cannot read its processor time: {error}"))
}

/// One of the two processes, and its control socket (QMP).
struct Side {
    process: Running,
    control: BufReader<UnixStream>,
}

fn start(kernel: &Path, socket: &Path, case: &Case, more: &[&str]) -> Result<Side, String> {
    let process = Command::new(PROGRAM)
        .args(["-M", "microvm,x-option-roms=off,pit=off,pic=off,rtc=off"])
        .args(["-accel", "kvm", "-cpu", "host,-arch-capabilities"])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-no-reboot", "-serial", "null", "-name", "debug-threads=on"])
        .args(["-m", &format!("{MEMORY_MIB}M"), "-append", &case.cmdline()])
        .args(["-smp", &case.cpus.to_string()])
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", socket.display()))
        .arg("-kernel")
        .arg(kernel)
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map(Running)
        .map_err(|error| format!("cannot start it: {error}"))?;
    let control = wait(
        "its control socket",
        || Ok(UnixStream::connect(socket).ok()),
    )?;
    control
        .set_read_timeout(Some(LIMIT))
        .map_err(|error| error.to_string())?;
    let mut side = Side {
        process,
        control: BufReader::new(control),
    };
    side.hear()?;
    side.call("qmp_capabilities", &json!({}))?;
    Ok(side)
}

impl Side {
    fn prepare(&mut self, multifd: Option<u32>) -> Result<(), String> {
        let mut settings = json!({
            "downtime-limit": DOWNTIME_LIMIT_MS,
            "max-bandwidth": BANDWIDTH_MAX,
        });
        if let Some(channels) = multifd {
            let on = json!({"capabilities": [{"capability": "multifd", "state": true}]});
            self.call("migrate-set-capabilities", &on)?;
            settings["multifd-channels"] = json!(channels);
        }
        self.call("migrate-set-parameters", &settings).map(drop)
    }

    fn call(&mut self, what: &str, arguments: &Value) -> Result<Value, String> {
        let order = json!({"execute": what, "arguments": arguments});
        writeln!(self.control.get_mut(), "{order}")
            .map_err(|error| format!("cannot tell it {what}: {error}"))?;
        loop {
            let mut answer = self.hear()?;
            if let Some(error) = answer.get("error") {
                return Err(format!("it refuses {what}: {error}"));
            }
            // Events come in between.
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
        }
    }

    fn hear(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        self.control
            .read_line(&mut line)
            .map_err(|error| format!("its control socket is silent: {error}"))?;
        serde_json::from_str(&line).map_err(|error| format!("it says {line:?}: {error}"))
    }
}
