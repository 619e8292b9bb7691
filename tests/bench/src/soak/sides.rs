//! One `vmm` process of a soak: it has the guest, or waits for it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use vmm::cli::ctl::request;
use vmm_core::control::Info;
use vmm_core::converge::Goal;
use vmm_core::lifecycle::State;
use vmm_core::migration::{CONNECTIONS_AUTO, Migrate, Progress};

use super::{LIMIT, POLL};
use crate::migrate::guest::Guest;
use crate::running::Running;

const MEMORY_MIB: u64 = 64;
const PATH: &str = "/v1/migration";

/// A process, and the directory that goes with it.
pub struct Side {
    process: Running,
    dir: tempfile::TempDir,
    /// Where it waits for a guest.
    pub address: String,
}

impl Side {
    /// A guest that runs.
    pub fn boot(vmm: &Path, kernel: &Path, cpus: u32, settings: &str) -> Result<Self, String> {
        let dir = directory()?;
        let mut command = Command::new(vmm);
        command.args(["run", "--console", "off", "--cpus", &cpus.to_string()]);
        command.args(["--memory", &MEMORY_MIB.to_string(), "--kernel"]);
        command.arg(kernel).arg("--cmdline");
        command
            .arg(format!("cpus={cpus} {settings}"))
            .arg("--api-socket")
            .arg(socket(&dir));
        let process = start(command.stderr(Stdio::null()))?;
        Guest::find(process.id(), MEMORY_MIB)?.wait_running()?;
        Ok(Self {
            process,
            dir,
            address: String::new(),
        })
    }

    /// One that waits for a guest.
    pub fn receive(vmm: &Path, tls_dir: Option<&Path>) -> Result<Self, String> {
        let dir = directory()?;
        let mut command = Command::new(vmm);
        command.args(["receive", "--console", "off", "--listen", "127.0.0.1:0"]);
        if let Some(tls_dir) = tls_dir {
            command.arg("--tls-dir").arg(tls_dir);
        }
        command.args(["--wait-max-s", "30", "--api-socket"]);
        let mut process = start(command.arg(socket(&dir)).stderr(Stdio::piped()))?;
        let mut line = String::new();
        let stderr = process.take_stderr().ok_or("no standard error")?;
        BufReader::new(stderr)
            .read_line(&mut line)
            .map_err(|error| format!("cannot hear where the target listens: {error}"))?;
        let address = line.trim().rsplit(' ').next().unwrap_or_default();
        Ok(Self {
            process,
            dir,
            address: address.to_owned(),
        })
    }

    /// Begin to move its guest.
    pub fn migrate_to(&self, to: &str, verify: bool, tls_dir: Option<&Path>) -> Result<(), String> {
        let wish = Migrate {
            to: to.to_owned(),
            connections: CONNECTIONS_AUTO,
            goal: Goal {
                accept_longer: true,
                ..Goal::default()
            },
            bandwidth_max: 0,
            verify,
            tls_dir: tls_dir.map(|dir| dir.to_string_lossy().into_owned()),
            dry_run: false,
        };
        let body = serde_json::to_vec(&wish).map_err(|error| error.to_string())?;
        request(&socket(&self.dir), "PUT", PATH, Some(&body)).map(drop)
    }

    /// How far it is; `None` when the process has ended.
    pub fn progress(&self) -> Option<Progress> {
        let answer = request(&socket(&self.dir), "GET", PATH, None);
        serde_json::from_slice(&answer.ok()?.body().ok()?).ok()
    }

    /// Ask it to give up.
    pub fn cancel(&self) {
        // It may have ended, because the guest has moved.
        let _ = request(&socket(&self.dir), "DELETE", PATH, None);
    }

    /// As if its host had lost power.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
    }

    /// Does it say that its guest runs? Waits for a target to know.
    pub fn runs(&self) -> bool {
        matches!(
            state(&socket(&self.dir)),
            Some(State::Running | State::Migrating)
        )
    }

    /// The same of one that may still be waiting for a guest; ends it if it is.
    pub fn runs_within(&mut self, limit: Duration) -> bool {
        let (answer, answered) = channel();
        let socket = socket(&self.dir);
        let asking = thread::spawn(move || answer.send(state(&socket)));
        let state = answered.recv_timeout(limit);
        if state.is_err() {
            self.kill();
        }
        // It has its answer, or lost whom it asked.
        let _ = asking.join();
        matches!(state, Ok(Some(State::Running | State::Migrating)))
    }

    /// Until its guest runs and nothing holds it back.
    pub fn wait_running(&self) -> Result<(), String> {
        let give_up = Instant::now() + LIMIT;
        while state(&socket(&self.dir)) != Some(State::Running) {
            if Instant::now() > give_up {
                return Err("the guest does not run again".to_owned());
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Every page holds what it must, and the guest works on.
    pub fn verify(&self) -> Result<(), String> {
        let guest = Guest::find(self.process.id(), MEMORY_MIB)?;
        guest.verify()?;
        guest.work_on()
    }
}

fn state(socket: &Path) -> Option<State> {
    let answer = request(socket, "GET", "/v1/info", None);
    let info: Info = serde_json::from_slice(&answer.ok()?.body().ok()?).ok()?;
    Some(info.state)
}

fn directory() -> Result<tempfile::TempDir, String> {
    tempfile::tempdir().map_err(|error| format!("cannot make a directory: {error}"))
}

fn socket(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("api")
}

fn start(command: &mut Command) -> Result<Running, String> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    child
        .map(Running)
        .map_err(|error| format!("cannot start it: {error}"))
}
