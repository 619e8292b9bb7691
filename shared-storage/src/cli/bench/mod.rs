//! Figures: what a heartbeat costs, what the gate costs, how soon a holder stops and another
//! takes over.

mod lapse;
mod requests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use storage_core::record::HEARTBEAT_BYTES;
use storage_core::timing::Timing;

use super::{Cli, CliError, show};
use crate::atomic::write_synced;
use crate::capability::is_nfs;
use crate::clock::LocalHost;
use crate::cluster_file::ClusterFile;
use crate::datastore::Datastore;
use crate::error::StoreError;
use crate::keeper::{Keeper, Role};
use crate::lease::HeldLease;
use requests::BlockPath;

const PATIENCE: Duration = Duration::from_mins(1);
/// Guests of one host whose stop is measured at once.
const GUESTS: usize = 16;
/// What a takeover with fencing has to clone.
const DISK_BYTES: usize = 4 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// How often stopping and taking over are measured.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Where the benchmark makes its own datastore; the temporary directory by default.
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Serialize)]
struct Figures {
    nfs: bool,
    heartbeat_bytes: usize,
    heartbeats_per_s: f64,
    heartbeat_write_us: Spread,
    gate_ns: f64,
    open_gate_ns: f64,
    block_path: BlockPath,
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
    /// Of so many; the p99 of less than a hundred is the largest.
    samples: usize,
}

impl Spread {
    fn of(mut samples: Vec<u64>) -> Self {
        samples.sort_unstable();
        let at = |per_mille: usize| samples.get(samples.len() * per_mille / 1000).copied();
        let last = samples.last().copied().unwrap_or_default();
        Self {
            p50: at(500).unwrap_or(last),
            p99: at(990).unwrap_or(last),
            samples: samples.len(),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p99, samples } = self;
        write!(f, "p50 {p50}, p99 {p99} of {samples}")
    }
}

pub(super) fn run(cli: &Cli, options: &Options) -> Result<ExitCode, CliError> {
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = parent.join(format!("godwit-store-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(StoreError::io("create", &dir))?;
    let figures = Stage::set(&dir).and_then(|stage| stage.measure(options.rounds));
    std::fs::remove_dir_all(&dir).map_err(StoreError::io("remove", &dir))?;
    let figures = figures?;
    show::answer(cli, &figures, || figures.in_words())
}

impl Figures {
    fn in_words(&self) -> String {
        let fenced = self.takeover_fenced_ms.as_ref().map_or_else(
            || "not here: this file system cannot clone files".into(),
            |spread| format!("{spread} ms (watch {} ms)", self.watch_fenced_ms),
        );
        format!(
            "heartbeat            {} bytes, {:.1}/s of one host; write {} us\n\
             gate                 {:.1} ns a pass (without a lease: {:.1} ns)\n\
             block request        {}\n\
             stop after deadline  {} us until a guest is told to pause\n\
             takeover             {} ms after the last heartbeat (watch {} ms)\n\
             takeover, fenced     {fenced}",
            self.heartbeat_bytes,
            self.heartbeats_per_s,
            self.heartbeat_write_us,
            self.gate_ns,
            self.open_gate_ns,
            self.block_path,
            self.stop_us,
            self.takeover_ms,
            self.watch_ms,
        )
    }
}

/// A datastore and hosts, played by this process.
struct Stage {
    dir: PathBuf,
    store: Datastore,
}

impl Stage {
    fn set(dir: &Path) -> Result<Self, StoreError> {
        let root = dir.join("store");
        std::fs::create_dir_all(&root).map_err(StoreError::io("create", &root))?;
        let store = Datastore::create(&root, &ClusterFile::new("bench", Timing::default()))?;
        for guest in 0..GUESTS {
            store.create_guest(&name(guest), &toml::Table::new(), |dir| {
                let disk = dir.join("disk0.raw");
                write_synced(&disk, &vec![7; DISK_BYTES])
            })?;
        }
        let dir = dir.to_owned();
        Ok(Self { dir, store })
    }

    fn measure(&self, rounds: u32) -> Result<Figures, StoreError> {
        let timing = self.store.timing();
        let (gate_ns, open_gate_ns, block_path) = requests::gate(self)?;
        let can_fence = self.store.guest(&name(0))?.fence()?.is_some();
        let (mut stop_us, mut takeover_ms, mut fenced_ms) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            stop_us.extend(lapse::stops(self, &format!("stop{round}"))?);
            takeover_ms.push(lapse::take_over(self, &format!("plain{round}"), false)?);
            if can_fence {
                fenced_ms.push(lapse::take_over(self, &format!("fenced{round}"), true)?);
            }
        }
        Ok(Figures {
            nfs: is_nfs(self.store.root())?,
            heartbeat_bytes: HEARTBEAT_BYTES,
            heartbeats_per_s: requests::heartbeats_per_s(self)?,
            heartbeat_write_us: requests::heartbeat(self)?,
            gate_ns,
            open_gate_ns,
            block_path,
            stop_us: Spread::of(stop_us),
            takeover_ms: Spread::of(takeover_ms),
            takeover_fenced_ms: (!fenced_ms.is_empty()).then(|| Spread::of(fenced_ms)),
            watch_ms: timing.watch_us(false) / 1000,
            watch_fenced_ms: timing.watch_us(true) / 1000,
        })
    }

    /// A host with a boot of its own.
    fn host(&self, name: &str) -> Result<Keeper, StoreError> {
        let run = self.dir.join("run").join(name);
        let host = LocalHost::new(name, &run)?.rebooted(&run);
        let keeper = Keeper::start(&self.store, &host, Role::Agent)?;
        keeper.wait_live(PATIENCE)?;
        Ok(keeper)
    }

    fn claim(&self, keeper: &Keeper, guest: usize) -> Result<HeldLease, StoreError> {
        let files = self.store.guest(&name(guest))?.lease();
        let seen = files.look()?;
        HeldLease::claim(keeper, files, &seen, None, None, PATIENCE)
    }
}

fn name(guest: usize) -> String {
    format!("bench{guest}")
}
