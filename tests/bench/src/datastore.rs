//! The datastore's figures on a file system that can clone files, and how soon guests'
//! processors stand still when that file system does not answer any more.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use ground::{Ground, Kind};
use shared_storage::lease::HeldLease;
use shared_storage::{ClusterFile, Datastore, Keeper, LocalHost, Role};
use storage_core::timing::Timing;
use vmm::cli::ctl::request;
use vmm_core::control::{Event, Happening};

use crate::running::Running;
use crate::stats::Sample;

/// How often the storage falls silent.
pub const DEFAULT_RUNS: u32 = 16;
/// Guests that run on it, all of one host.
const GUESTS: usize = 4;
const HOST: &str = "bench";
const LIMIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(5);

/// Runs `godwit-store bench`, then guests whose storage stops answering.
pub fn run(runs: u32) -> Result<String, String> {
    let beside = std::env::current_exe().map_err(|error| error.to_string())?;
    let ground = match Ground::in_file(Kind::Xfs) {
        Ok(ground) => ground,
        Err(why) => {
            let plain = figures(&beside, &std::env::temp_dir())?;
            return Ok(format!("SKIPPED: {why}\n\nDatastore\n\n{plain}"));
        }
    };
    let figures = figures(&beside, &ground.root())?;
    let stop = match std::fs::File::open("/dev/kvm") {
        Ok(_) => stops(&beside.with_file_name("vmm"), &ground, runs)?,
        Err(error) => format!("SKIPPED: stopping needs /dev/kvm, which cannot be opened: {error}"),
    };
    Ok(format!("Datastore: XFS in a file\n\n{figures}{stop}\n"))
}

fn figures(beside: &Path, dir: &Path) -> Result<String, String> {
    let mut command = Command::new(beside.with_file_name("godwit-store"));
    command.args(["bench", "--dir"]).arg(dir);
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("cannot run godwit-store: {error}"))?;
    if !output.status.success() {
        return Err(format!("godwit-store bench failed: {}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a guest says of itself, and which one it is.
struct Told {
    guest: usize,
    event: Event,
}

/// From the deadline until a guest's processors stand still.
fn stops(vmm: &Path, ground: &Ground, runs: u32) -> Result<String, String> {
    let dir = tempfile::tempdir().map_err(|error| format!("cannot make a directory: {error}"))?;
    let stage = Stage::set(vmm, ground, dir.path())?;
    let mut late_ms = Sample::default();
    for _ in 0..runs {
        ground.freeze()?;
        let stopped = stage.until_all(&Happening::LeaseSuspended)?;
        let deadline_us = stage.keeper.hold().deadline_us();
        for at_us in stopped {
            late_ms.push(at_us.saturating_sub(deadline_us) as f64 / 1000.0);
        }
        ground.thaw()?;
        stage.until_all(&Happening::LeaseResumed)?;
    }
    Ok(format!(
        "processors stopped   p50 {:.1}, p99 {:.1}, longest {:.1} ms after the deadline \
         ({GUESTS} guests, storage silent {runs} times)",
        late_ms.median(),
        late_ms.percentile(99),
        late_ms.max()
    ))
}

/// A host with guests, each in a process of its own.
struct Stage {
    keeper: Keeper,
    told: Receiver<Told>,
    _processes: Vec<Running>,
}

impl Stage {
    fn set(vmm: &Path, ground: &Ground, dir: &Path) -> Result<Self, String> {
        let root = ground.root().join("store");
        let kernel = dir.join("probe");
        std::fs::create_dir(&root).map_err(|error| format!("cannot make a datastore: {error}"))?;
        std::fs::write(&kernel, probe::IMAGE)
            .map_err(|error| format!("cannot write the probe: {error}"))?;
        let words = |error: shared_storage::StoreError| error.to_string();
        let store = Datastore::create(&root, &ClusterFile::new("bench", Timing::default()));
        let store = store.map_err(words)?;
        let host = LocalHost::new(HOST, dir).map_err(words)?;
        let keeper = Keeper::start(&store, &host, Role::Agent).map_err(words)?;
        keeper.wait_live(LIMIT).map_err(words)?;
        let (tell, told) = channel();
        let mut processes = Vec::new();
        for guest in 0..GUESTS {
            let name = format!("guest{guest}");
            let made = store.create_guest(&name, &toml::Table::new(), |_| Ok(()));
            let files = made.map_err(words)?.lease();
            let seen = files.look().map_err(words)?;
            let held = HeldLease::claim(&keeper, files, &seen, None, None, LIMIT);
            drop(held.map_err(words)?);
            let socket = dir.join(&name);
            processes.push(start(vmm, &root, dir, &kernel, &name)?);
            await_answer(&socket)?;
            processes.push(listen(vmm, &socket, guest, tell.clone())?);
        }
        Ok(Self {
            keeper,
            told,
            _processes: processes,
        })
    }

    /// Waits until it happened to every guest; gives when it did.
    fn until_all(&self, what: &Happening) -> Result<Vec<u64>, String> {
        let give_up = Instant::now() + LIMIT;
        let mut at_us = [None; GUESTS];
        while at_us.contains(&None) {
            let left = give_up.saturating_duration_since(Instant::now());
            let told = self.told.recv_timeout(left);
            let told = told.map_err(|_| format!("a guest never said {what:?}"))?;
            if told.event.what == *what {
                at_us[told.guest] = Some(told.event.boottime_us);
            }
        }
        Ok(at_us.into_iter().flatten().collect())
    }
}

fn start(
    vmm: &Path,
    store: &Path,
    dir: &Path,
    kernel: &Path,
    name: &str,
) -> Result<Running, String> {
    let mut command = Command::new(vmm);
    command.args(["run", "--memory", "32", "--console", "off", "--guest", name]);
    command.args(["--cmdline", "cpus=1", "--host", HOST, "--datastore"]);
    command.arg(store).arg("--run-dir").arg(dir);
    command.arg("--kernel").arg(kernel);
    command.arg("--api-socket").arg(dir.join(name));
    let child = command.spawn();
    child
        .map(Running)
        .map_err(|error| format!("cannot start {}: {error}", vmm.display()))
}

fn await_answer(socket: &Path) -> Result<(), String> {
    let give_up = Instant::now() + LIMIT;
    loop {
        match request(socket, "GET", "/v1/info", None) {
            Ok(_) => return Ok(()),
            Err(why) if Instant::now() > give_up => return Err(why),
            Err(_) => thread::sleep(POLL),
        }
    }
}

/// Passes on what a guest tells.
fn listen(vmm: &Path, socket: &Path, guest: usize, tell: Sender<Told>) -> Result<Running, String> {
    let mut command = Command::new(vmm);
    command.arg("ctl").arg("--api-socket").arg(socket);
    let child = command.arg("events").stdout(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| format!("cannot listen to a guest: {error}"))?;
    let output = child.stdout.take().ok_or("no standard output")?;
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let Ok(event) = serde_json::from_str(&line) else {
                break;
            };
            if tell.send(Told { guest, event }).is_err() {
                break;
            }
        }
    });
    Ok(Running(child))
}
