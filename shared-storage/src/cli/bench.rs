//! Figures: what a heartbeat costs, what the gate costs, how soon a holder stops and another
//! takes over.

use std::fmt;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use storage_core::record::HEARTBEAT_BYTES;
use storage_core::timing::Timing;

use super::{Cli, CliError, show};
use crate::clock::{LocalHost, boottime_us};
use crate::datastore::{ClusterFile, Datastore};
use crate::error::StoreError;
use crate::gate::{AlwaysOpen, Gate};
use crate::keeper::{Keeper, Role};
use crate::lease::{HeldLease, Notice};
use crate::watcher::Watcher;

const PATIENCE: Duration = Duration::from_mins(1);
const PASSES: u32 = 2_000_000;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// How often stopping and taking over are measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Where the benchmark makes its own datastore; the temporary directory by default.
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Serialize)]
struct Figures {
    heartbeat_bytes: usize,
    heartbeats_per_s: f64,
    heartbeat_write_us: Spread,
    gate_ns: f64,
    open_gate_ns: f64,
    stop_us: Spread,
    takeover_ms: Spread,
    takeover_fenced_ms: Option<Spread>,
    watch_ms: u64,
    watch_fenced_ms: u64,
}

#[derive(Serialize)]
struct Spread {
    p50: u64,
    p99: u64,
}

impl Spread {
    fn of(mut samples: Vec<u64>) -> Self {
        samples.sort_unstable();
        let at = |per_mille: usize| samples.get(samples.len() * per_mille / 1000).copied();
        let last = samples.last().copied().unwrap_or_default();
        Self {
            p50: at(500).unwrap_or(last),
            p99: at(990).unwrap_or(last),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p50 {}, p99 {}", self.p50, self.p99)
    }
}

pub(super) fn run(cli: &Cli, options: &Options) -> Result<ExitCode, CliError> {
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = parent.join(format!("godwit-store-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(StoreError::io("create", &dir))?;
    let figures = measure(&dir, options.rounds);
    std::fs::remove_dir_all(&dir).map_err(StoreError::io("remove", &dir))?;
    let figures = figures?;
    show::answer(cli, &figures, || {
        let fenced = figures.takeover_fenced_ms.as_ref();
        format!(
            "heartbeat            {} bytes, {:.1}/s per host; write {} us\n\
             gate                 {:.1} ns per request (without a lease: {:.1} ns)\n\
             stop after deadline  {} us until the guest is told to pause\n\
             takeover             {} ms after the last heartbeat (watch {} ms)\n\
             takeover, fenced     {}",
            figures.heartbeat_bytes,
            figures.heartbeats_per_s,
            figures.heartbeat_write_us,
            figures.gate_ns,
            figures.open_gate_ns,
            figures.stop_us,
            figures.takeover_ms,
            figures.watch_ms,
            fenced.map_or_else(
                || "not here: this file system cannot clone files".into(),
                |spread| format!("{spread} ms (watch {} ms)", figures.watch_fenced_ms)
            ),
        )
    })
}

fn measure(dir: &Path, rounds: usize) -> Result<Figures, StoreError> {
    let timing = Timing::default();
    let root = dir.join("store");
    std::fs::create_dir_all(&root).map_err(StoreError::io("create", &root))?;
    let store = Datastore::create(&root, &ClusterFile::new("bench", timing))?;
    let guest = store.create_guest("bench", &toml::Table::new(), |_| Ok(()))?;
    let (gate_ns, open_gate_ns) = gate(dir, &store)?;
    let (mut stop_us, mut takeover_ms, mut fenced_ms) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let (stop, takeover) = take_over(dir, &store, &format!("plain{round}"), false)?;
        stop_us.push(stop);
        takeover_ms.push(takeover);
        if guest.fence()?.is_some() {
            let (_, takeover) = take_over(dir, &store, &format!("fenced{round}"), true)?;
            fenced_ms.push(takeover);
        }
    }
    Ok(Figures {
        heartbeat_bytes: HEARTBEAT_BYTES,
        heartbeats_per_s: 1e6 / timing.interval_us() as f64,
        heartbeat_write_us: heartbeat_cost(dir)?,
        gate_ns,
        open_gate_ns,
        stop_us: Spread::of(stop_us),
        takeover_ms: Spread::of(takeover_ms),
        takeover_fenced_ms: (!fenced_ms.is_empty()).then(|| Spread::of(fenced_ms)),
        watch_ms: timing.watch_us(false) / 1000,
        watch_fenced_ms: timing.watch_us(true) / 1000,
    })
}

fn heartbeat_cost(dir: &Path) -> Result<Spread, StoreError> {
    const WRITES: u64 = 100;
    let mut writer = crate::heartbeat::HeartbeatWriter::new(dir.join("heartbeat"));
    let mut samples = Vec::new();
    for counter in 0..WRITES {
        let record = storage_core::record::HeartbeatRecord {
            host: "bench".into(),
            incarnation: storage_core::record::Incarnation::default(),
            counter,
            sent_us: boottime_us(),
            term: 0,
            flags: 0,
            writer_pid: std::process::id(),
        };
        let start = Instant::now();
        writer.write(&record)?;
        samples.push(start.elapsed().as_micros() as u64);
    }
    Ok(Spread::of(samples))
}

/// What a request pays at the gate of a lease, and at one that is always open.
fn gate(dir: &Path, store: &Datastore) -> Result<(f64, f64), StoreError> {
    let keeper = start_host(dir, store, "gate")?;
    let held = claim(store, &keeper)?;
    let leased = held.gate();
    let leased_ns = per_pass_ns(&*leased);
    let open_ns = per_pass_ns(&AlwaysOpen);
    held.release(PATIENCE)?;
    Ok((leased_ns, open_ns))
}

fn per_pass_ns(gate: &dyn Gate) -> f64 {
    let gate = black_box(gate);
    let start = Instant::now();
    for _ in 0..PASSES {
        let _ = black_box(gate.pass());
    }
    start.elapsed().as_nanos() as f64 / f64::from(PASSES)
}

/// A host loses its power; how late is its guest told to pause, measured from the deadline,
/// and when does another hold the lease, measured from the last heartbeat?
fn take_over(
    dir: &Path,
    store: &Datastore,
    name: &str,
    fenced: bool,
) -> Result<(u64, u64), StoreError> {
    let other = start_host(dir, store, &format!("{name}b"))?;
    let old_name = format!("{name}a");
    let old = start_host(dir, store, &old_name)?;
    let held = claim(store, &old)?;
    let mut watcher = Watcher::new(store, &other);
    watcher.watch(&old_name)?;
    let seen = store.guest("bench")?.lease().look()?;
    // Until the watcher has settled.
    thread::sleep(Duration::from_millis(600));
    let page = old.page().clone();
    drop(old);
    let last_us = page.acked_us();
    let paused = thread::spawn(move || {
        let paused = held.notices().iter().any(|notice| notice == Notice::Pause);
        paused.then(|| boottime_us().saturating_sub(page.hold().deadline_us()))
    });
    let taken = loop {
        let guest = store.guest("bench")?;
        let fence = if fenced { guest.fence()? } else { None };
        match HeldLease::claim(
            &other,
            guest.lease(),
            &seen,
            Some(&watcher),
            fence,
            PATIENCE,
        ) {
            Err(StoreError::Held { .. }) => thread::sleep(Duration::from_millis(2)),
            taken => break taken?,
        }
    };
    let takeover_ms = boottime_us().saturating_sub(last_us) / 1000;
    taken.release(PATIENCE)?;
    let stop_us = paused.join().ok().flatten().unwrap_or_default();
    Ok((stop_us, takeover_ms))
}

fn start_host(dir: &Path, store: &Datastore, name: &str) -> Result<Keeper, StoreError> {
    let run = dir.join("run").join(name);
    let host = LocalHost::new(name, &run)?.rebooted(&run);
    let keeper = Keeper::start(store, &host, Role::Agent)?;
    keeper.wait_live(PATIENCE)?;
    Ok(keeper)
}

fn claim(store: &Datastore, keeper: &Keeper) -> Result<HeldLease, StoreError> {
    let files = store.guest("bench")?.lease();
    let seen = files.look()?;
    HeldLease::claim(keeper, files, &seen, None, None, PATIENCE)
}
