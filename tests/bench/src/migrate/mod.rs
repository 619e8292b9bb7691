//! Live migration of the probe over loopback, ours beside QEMU's: how long it takes, how long
//! the guest stands still by its own clock, how many bytes travel and what it costs.

mod case;
mod cpu;
mod godwit;
pub mod guest;
mod plot;
mod qemu;
mod reference;
mod throughput;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use vmm_core::migration::Steps;

use crate::stats::Sample;
use crate::table::Table;
use case::{AT_REST, CASES, Case, MEMORY_MIB};
use plot::{Plot, Point};
use reference::Warm;

/// Runs of each peer in each case, unless told otherwise.
pub const DEFAULT_RUNS: u32 = 3;
/// Data connections of ours, and streams of iperf3's, unless told otherwise.
pub const DEFAULT_CONNECTIONS: u32 = 2;
/// Whatever a guest or its hypervisor is waited for takes seconds at most.
const LIMIT: Duration = Duration::from_mins(1);
/// How often progress is looked at: seldom enough to cost nothing.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Why there is no table.
#[derive(Debug, Error)]
pub enum MigrateError {
    #[error("cannot {act}: {cause}")]
    Io { act: String, cause: io::Error },
    #[error("{peer}, {case}: {why}")]
    Run {
        peer: &'static str,
        case: &'static str,
        why: String,
    },
}

fn io_error(act: impl Into<String>) -> impl FnOnce(io::Error) -> MigrateError {
    let act = act.into();
    move |cause| MigrateError::Io { act, cause }
}

/// What one migration came to.
#[derive(Debug)]
struct Moved {
    total_ms: f64,
    /// For how long the guest was stopped, by its own reckoning.
    blackout_ms: f64,
    /// The longest time for which it did not run for whatever reason: on two cores the copying
    /// and all other load take processors from it.
    longest_gap_ms: f64,
    /// The blackout as the source tells it in the end.
    told_ms: f64,
    /// What the source had predicted of the blackout.
    predicted_ms: f64,
    sent_mib: f64,
    /// MiB/s of the first round, where that is told.
    bulk_mib_s: f64,
    /// Of both processes, without the guest's processors.
    cpu_s: f64,
    /// Where the blackout went, where that is told.
    steps: Option<Steps>,
    /// How it went, where that is told.
    trace: Vec<Point>,
}

#[derive(Default)]
struct Samples {
    total_ms: Sample,
    blackout_ms: Sample,
    longest_gap_ms: Sample,
    told_ms: Sample,
    predicted_ms: Sample,
    /// The blackout by what was predicted of it.
    surprise: Sample,
    sent_mib: Sample,
    cpu_s: Sample,
    /// In the order of [`Steps`].
    steps_us: [Sample; Steps::NAMES.len()],
}

impl Samples {
    fn push(&mut self, moved: &Moved) {
        self.total_ms.push(moved.total_ms);
        self.blackout_ms.push(moved.blackout_ms);
        self.longest_gap_ms.push(moved.longest_gap_ms);
        self.told_ms.push(moved.told_ms);
        self.predicted_ms.push(moved.predicted_ms);
        self.surprise.push(moved.blackout_ms / moved.predicted_ms);
        self.sent_mib.push(moved.sent_mib);
        self.cpu_s.push(moved.cpu_s);
        let Some(steps) = moved.steps else {
            return;
        };
        for (sample, us) in self.steps_us.iter_mut().zip(steps.each_us()) {
            sample.push(us as f64);
        }
    }

    /// Where the blackout went.
    fn words(&self, case: &Case) -> String {
        let steps = Steps::NAMES.iter().zip(&self.steps_us);
        let steps: Vec<_> = steps
            .map(|(name, us)| format!("{name} {:.0}", us.median()))
            .collect();
        format!(
            "\n{}: {} us of the blackout as the source saw it\n",
            case.name,
            steps.join(", ")
        )
    }
}

/// Memory that is warmed for each side: what a guest fills, and what its hypervisor needs.
const WARM_MIB: u64 = 1280;

/// Who moves the guest, and with what settings.
enum Mover {
    Godwit { vmm: PathBuf, connections: u32 },
    Qemu { multifd: Option<u32> },
}

impl Mover {
    fn name(&self) -> &'static str {
        match self {
            Mover::Godwit { .. } => "godwit vmm",
            Mover::Qemu { multifd: None } => "QEMU precopy",
            Mover::Qemu { multifd: Some(_) } => "QEMU multifd",
        }
    }

    /// One migration of a freshly booted probe.
    fn run(&self, kernel: &Path, case: &Case) -> Result<Moved, MigrateError> {
        // For the source to fill; the target's is warmed when the source has its own.
        drop(Warm::take(WARM_MIB).map_err(io_error("take memory"))?);
        let moved = match self {
            Mover::Godwit { vmm, connections } => godwit::run(vmm, *connections, kernel, case),
            Mover::Qemu { multifd } => qemu::run(*multifd, kernel, case),
        };
        moved.map_err(|why| MigrateError::Run {
            peer: self.name(),
            case: case.name,
            why,
        })
    }
}

/// What is asked for on the command line.
pub struct Wish {
    /// Measured migrations of each peer in each case.
    pub runs: u32,
    /// Our binary; the one beside this program if not given.
    pub vmm: Option<PathBuf>,
    /// Data connections of ours.
    pub connections: u32,
    /// Processors of the guest in all but the case at rest.
    pub cpus: u32,
    /// Only the cases whose names contain this.
    pub only: Option<String>,
    /// Leave the peers out.
    pub alone: bool,
    /// Where to draw how ours went (SVG).
    pub plot: Option<PathBuf>,
}

impl Default for Wish {
    fn default() -> Self {
        Wish {
            runs: DEFAULT_RUNS,
            vmm: None,
            connections: DEFAULT_CONNECTIONS,
            cpus: 1,
            only: None,
            alone: false,
            plot: None,
        }
    }
}

/// Moves the guest with each peer in turn, so that what disturbs the machine disturbs them alike.
pub fn run(wish: Wish) -> Result<String, MigrateError> {
    if let Err(error) = std::fs::File::open("/dev/kvm") {
        return Ok(format!(
            "SKIPPED: migrate needs /dev/kvm, which cannot be opened: {error}"
        ));
    }
    let kernel = tempfile::NamedTempFile::with_suffix(".elf").map_err(io_error("make a file"))?;
    std::fs::write(kernel.path(), probe::IMAGE).map_err(io_error("write the probe"))?;
    let beside = std::env::current_exe().map_err(io_error("find this program"))?;
    let ours = Mover::Godwit {
        vmm: wish.vmm.unwrap_or_else(|| beside.with_file_name("vmm")),
        connections: wish.connections,
    };
    let mut movers = vec![ours];
    let mut text = String::new();
    if !wish.alone {
        match qemu::version() {
            Ok(()) => {
                movers.extend([None, Some(qemu::CHANNELS)].map(|multifd| Mover::Qemu { multifd }));
            }
            Err(why) => text = format!("SKIPPED: QEMU: {why}\n\n"),
        }
    }
    let only = wish.only.as_deref().unwrap_or_default();
    let wanted = |case: &&Case| case.name.contains(only);
    let title = format!(
        "Migration: the probe with {MEMORY_MIB} MiB and {} vCPU over loopback, median of {} runs, in turn",
        wish.cpus, wish.runs
    );
    let mut table = Table::new(title, &HEADS);
    let mut plot = Plot::default();
    let mut notes = Vec::new();
    let cpus = wish.cpus;
    let cases = CASES.map(|case| Case { cpus, ..case });
    for case in cases.iter().filter(wanted) {
        notes.extend(rows(
            &mut table,
            &mut plot,
            case,
            wish.runs,
            &movers,
            kernel.path(),
        )?);
    }
    if CASES.iter().any(|case| wanted(&case)) {
        text += &table.to_string();
    }
    text += &notes.concat();
    if wanted(&&AT_REST) {
        text += &throughput::table(wish.runs, wish.connections, &movers, kernel.path())?;
    }
    if let Some(path) = &wish.plot {
        let shown = path.display();
        std::fs::write(path, plot.svg()).map_err(io_error(format!("write {shown}")))?;
        text = format!("{text}\nPlot of our last run in each case: {shown}\n");
    }
    Ok(text)
}

const HEADS: [&str; 13] = [
    "case, peer",
    "total ms",
    "ratio",
    "blackout ms",
    "min",
    "max",
    "ratio",
    "as told",
    "predicted",
    "worst/pred.",
    "longest gap",
    "MiB",
    "CPU s",
];

/// Adds the rows of one case; says what went wrong with a peer. Ours must not go wrong.
fn rows(
    table: &mut Table,
    plot: &mut Plot,
    case: &Case,
    runs: u32,
    movers: &[Mover],
    kernel: &Path,
) -> Result<Vec<String>, MigrateError> {
    let mut samples: Vec<Samples> = movers.iter().map(|_| Samples::default()).collect();
    let mut notes = Vec::new();
    for _ in 0..runs {
        for (mover, samples) in movers.iter().zip(&mut samples) {
            match mover.run(kernel, case) {
                Ok(moved) => {
                    samples.push(&moved);
                    plot.keep(case.name, moved.trace);
                }
                Err(error) if matches!(mover, Mover::Qemu { .. }) => {
                    notes.push(format!("\nNot counted: {error}\n"));
                }
                Err(error) => return Err(error),
            }
        }
    }
    let ours = &samples[0];
    notes.push(ours.words(case));
    for (mover, sample) in movers.iter().zip(&samples) {
        let ratio =
            |sample: &Sample, ours: &Sample| format!("{:.1}x", sample.median() / ours.median());
        table.row(vec![
            format!("{}, {}", case.name, mover.name()),
            format!("{:.0}", sample.total_ms.median()),
            ratio(&sample.total_ms, &ours.total_ms),
            format!("{:.1}", sample.blackout_ms.median()),
            format!("{:.1}", sample.blackout_ms.min()),
            format!("{:.1}", sample.blackout_ms.max()),
            ratio(&sample.blackout_ms, &ours.blackout_ms),
            format!("{:.1}", sample.told_ms.median()),
            format!("{:.1}", sample.predicted_ms.median()),
            format!("{:.2}", sample.surprise.max()),
            format!("{:.1}", sample.longest_gap_ms.median()),
            format!("{:.0}", sample.sent_mib.median()),
            format!("{:.2}", sample.cpu_s.median()),
        ]);
    }
    Ok(notes)
}
