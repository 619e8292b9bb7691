//! How long from exec to the guest's first byte, and how much memory beside the guest's.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ChildStdout;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;

use crate::peer::Peer;
use crate::resident::overhead_kib;
use crate::running::Running;
use crate::stats::Sample;
use crate::table::Table;

const MEMORY_MIB: u64 = 128;
const LIMIT: Duration = Duration::from_secs(30);
const FIRST: &[u8] = b"P";
const LAST: &[u8] = b"probe running\n";
/// Memory is looked at once the guest has run for so long: what only its start took is no overhead.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// Why there is no table.
#[derive(Debug, Error)]
pub enum BootError {
    #[error("cannot {act}: {cause}")]
    Io { act: String, cause: io::Error },
    #[error("{name} did not boot the probe; it printed {printed:?} and said {said:?}")]
    NoBoot {
        name: &'static str,
        printed: String,
        said: String,
    },
}

fn io_error(act: impl Into<String>) -> impl FnOnce(io::Error) -> BootError {
    let act = act.into();
    move |cause| BootError::Io { act, cause }
}

/// What one start cost.
struct Start {
    first_byte_ms: f64,
    overhead_mib: f64,
}

#[derive(Default)]
struct Samples {
    first_byte_ms: Sample,
    overhead_mib: Sample,
}

/// Starts each peer in turn, so that what disturbs the machine disturbs them alike.
pub fn run(runs: u32, vmm: Option<PathBuf>) -> Result<String, BootError> {
    if let Err(error) = std::fs::File::open("/dev/kvm") {
        return Ok(format!(
            "SKIPPED: boot needs /dev/kvm, which cannot be opened: {error}"
        ));
    }
    let kernel = tempfile::NamedTempFile::with_suffix(".elf").map_err(io_error("make a file"))?;
    std::fs::write(kernel.path(), probe::IMAGE).map_err(io_error("write the probe"))?;
    let beside = std::env::current_exe().map_err(io_error("find this program"))?;
    let vmm = vmm.unwrap_or_else(|| beside.with_file_name("vmm"));
    let peers = [Peer::Godwit(vmm), Peer::Microvm];
    let mut skipped = Vec::new();
    let mut samples = Vec::new();
    for peer in peers {
        // A start that is not counted warms the caches up, and shows who can start at all.
        match start(&peer, kernel.path()) {
            Ok(_) => samples.push((peer, Samples::default())),
            Err(error) => skipped.push(format!("SKIPPED: {}: {error}\n\n", peer.name())),
        }
    }
    for _ in 0..runs {
        for (peer, samples) in &mut samples {
            let start = start(peer, kernel.path())?;
            samples.first_byte_ms.push(start.first_byte_ms);
            samples.overhead_mib.push(start.overhead_mib);
        }
    }
    Ok(skipped.concat() + &table(runs, &samples))
}

fn table(runs: u32, samples: &[(Peer, Samples)]) -> String {
    let heads = [
        "peer",
        "first byte ms",
        "min",
        "max",
        "ratio",
        "overhead MiB",
        "min",
        "max",
        "ratio",
    ];
    let title = format!("Boot: the probe with {MEMORY_MIB} MiB, median of {runs} starts, in turn");
    let mut table = Table::new(title, &heads);
    for (peer, sample) in samples {
        let ours = &samples[0].1;
        let mut row = vec![peer.name().to_owned()];
        for (sample, ours) in [
            (&sample.first_byte_ms, &ours.first_byte_ms),
            (&sample.overhead_mib, &ours.overhead_mib),
        ] {
            for value in [sample.median(), sample.min(), sample.max()] {
                row.push(format!("{value:.1}"));
            }
            row.push(format!("{:.1}x", sample.median() / ours.median()));
        }
        table.row(row);
    }
    table.to_string()
}

fn start(peer: &Peer, kernel: &std::path::Path) -> Result<Start, BootError> {
    let mut command = peer.command(kernel, MEMORY_MIB, "sweep_mib_s=0");
    let begun = Instant::now();
    let child = command
        .spawn()
        .map_err(io_error(format!("start {}", peer.name())))?;
    let mut running = Running(child);
    let mut output = running.0.stdout.take().expect("piped");
    let mut printed = Vec::new();
    let mut first_byte_ms = None;
    while !printed.ends_with(LAST) {
        if !read_some(&mut output, &mut printed, begun)? {
            let _ = running.0.kill();
            let mut said = String::new();
            let _ = running
                .take_stderr()
                .expect("piped")
                .read_to_string(&mut said);
            let printed = String::from_utf8_lossy(&printed).into_owned();
            return Err(BootError::NoBoot {
                name: peer.name(),
                printed,
                said,
            });
        }
        if first_byte_ms.is_none() && printed.starts_with(FIRST) {
            first_byte_ms = Some(begun.elapsed().as_secs_f64() * 1000.0);
        }
    }
    thread::sleep(SETTLED_AFTER);
    let overhead_kib = overhead_kib(running.id(), MEMORY_MIB * 1024)
        .map_err(io_error(format!("read the memory map of {}", peer.name())))?;
    let first_byte_ms = first_byte_ms.ok_or_else(|| BootError::NoBoot {
        name: peer.name(),
        printed: String::from_utf8_lossy(&printed).into_owned(),
        said: "something before the guest's first byte".to_owned(),
    })?;
    Ok(Start {
        first_byte_ms,
        overhead_mib: overhead_kib as f64 / 1024.0,
    })
}

/// Waits for more output; `false` at its end or at the time limit.
fn read_some(
    output: &mut ChildStdout,
    into: &mut Vec<u8>,
    begun: Instant,
) -> Result<bool, BootError> {
    let left = LIMIT.saturating_sub(begun.elapsed());
    let timeout = Timespec {
        tv_sec: left.as_secs().cast_signed(),
        tv_nsec: left.subsec_nanos().into(),
    };
    let pipe = output.as_fd();
    let mut ready = [PollFd::new(&pipe, PollFlags::IN)];
    let count =
        poll(&mut ready, Some(&timeout)).map_err(|e| io_error("wait for output")(e.into()))?;
    if count == 0 {
        return Ok(false);
    }
    let mut bytes = [0; 4096];
    let got = output.read(&mut bytes).map_err(io_error("read output"))?;
    into.extend_from_slice(&bytes[..got]);
    Ok(got > 0)
}
