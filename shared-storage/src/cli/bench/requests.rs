//! What is paid all the time: a heartbeat, and the gate in front of every block request.

use std::fmt;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use storage_core::record::{HeartbeatRecord, Incarnation};
use vm_memory::VolatileSlice;

use super::{PATIENCE, Spread, Stage};
use crate::clock::boottime_us;
use crate::error::StoreError;
use crate::gate::{AlwaysOpen, Gate};
use crate::heartbeat::HeartbeatWriter;
use crate::image::{self, Disk, DiskError, DiskOptions, Format, ImageError};

const HEARTBEATS: u64 = 100;
const PASSES: u32 = 2_000_000;
/// What a disk of the measurement has.
const DISK_BYTES: u64 = 16 << 20;
const REQUEST_BYTES: usize = 4096;
/// Requests of a batch, and batches.
const BATCH: u64 = 2000;
const BATCHES: usize = 100;
const BATCH_DIRECT: u64 = 100;
const BATCHES_DIRECT: usize = 60;

/// What a block request costs through all that a virtual disk's request goes through but the
/// virtqueue: half are reads, half are writes.
#[derive(Serialize)]
pub(super) struct BlockPath {
    request_bytes: usize,
    /// From and to the page cache, where requests are fastest.
    cached: RequestNs,
    /// Past it; none where the file system cannot do that.
    direct: Option<RequestNs>,
}

/// Medians, in nanoseconds.
#[derive(Serialize)]
struct RequestNs {
    leased: u64,
    open: u64,
    /// The same once more: how far two equal things lie apart.
    open_again: u64,
}

impl fmt::Display for BlockPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RequestNs {
            leased,
            open,
            open_again,
        } = &self.cached;
        write!(
            f,
            "{leased} ns with a lease, {open} and {open_again} ns without ({} bytes, page cache)",
            self.request_bytes
        )?;
        let Some(RequestNs {
            leased,
            open,
            open_again,
        }) = &self.direct
        else {
            return Ok(());
        };
        write!(
            f,
            "\n                     {leased} ns with a lease, {open} and {open_again} ns without \
             (direct I/O)"
        )
    }
}

pub(super) fn heartbeat(stage: &Stage) -> Result<Spread, StoreError> {
    let mut writer = HeartbeatWriter::new(stage.store.root().join("heartbeat"));
    let mut samples = Vec::new();
    for counter in 0..HEARTBEATS {
        let record = HeartbeatRecord {
            host: "bench".into(),
            incarnation: Incarnation::default(),
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

/// A pass of a lease's gate and of one that is always open, and requests behind them.
pub(super) fn gate(stage: &Stage) -> Result<(f64, f64, BlockPath), StoreError> {
    let keeper = stage.host("gate")?;
    let held = stage.claim(&keeper, 0)?;
    let leased = held.gate();
    let pass_ns = (per_pass_ns(&*leased), per_pass_ns(&AlwaysOpen));
    let open = || Arc::new(AlwaysOpen) as Arc<dyn Gate>;
    let path = block_path(stage, &[leased, open(), open()])?;
    held.release(PATIENCE)?;
    Ok((pass_ns.0, pass_ns.1, path))
}

fn per_pass_ns(gate: &dyn Gate) -> f64 {
    let gate = black_box(gate);
    let start = Instant::now();
    for _ in 0..PASSES {
        let _ = black_box(gate.pass());
    }
    start.elapsed().as_nanos() as f64 / f64::from(PASSES)
}

fn block_path(stage: &Stage, gates: &[Arc<dyn Gate>; 3]) -> Result<BlockPath, StoreError> {
    Ok(BlockPath {
        request_bytes: REQUEST_BYTES,
        cached: requests(stage, gates, false)?,
        direct: requests(stage, gates, true).ok(),
    })
}

/// In turn, so that what disturbs the machine disturbs all alike.
fn requests(
    stage: &Stage,
    gates: &[Arc<dyn Gate>; 3],
    direct: bool,
) -> Result<RequestNs, StoreError> {
    let (batches, length) = if direct {
        (BATCHES_DIRECT, BATCH_DIRECT)
    } else {
        (BATCHES, BATCH)
    };
    let mut disks = Vec::new();
    for (number, gate) in gates.iter().enumerate() {
        let path = stage.dir.join(format!("requests{number}-{direct}.raw"));
        let disk = open(&path, gate.clone(), direct).map_err(|error| failed(stage, error))?;
        batch(&disk, length).map_err(|error| failed(stage, error))?;
        disks.push((disk, Vec::new()));
    }
    for _ in 0..batches {
        for (disk, samples) in &mut disks {
            samples.push(batch(disk, length).map_err(|error| failed(stage, error))?);
        }
    }
    let median = |number: usize| Spread::of(disks[number].1.clone()).p50;
    Ok(RequestNs {
        leased: median(0),
        open: median(1),
        open_again: median(2),
    })
}

fn open(path: &Path, gate: Arc<dyn Gate>, direct: bool) -> Result<Disk, ImageError> {
    image::create(None, path, Format::Raw, DISK_BYTES)?;
    Disk::open(DiskOptions {
        direct,
        gate,
        ..DiskOptions::new(path, Format::Raw)
    })
}

/// As the file system wants it for direct I/O.
#[repr(align(4096))]
struct Buffer([u8; REQUEST_BYTES]);

/// What a request of so many takes, in nanoseconds.
fn batch(disk: &Disk, requests: u64) -> Result<u64, DiskError> {
    let mut buffer = Buffer([7; REQUEST_BYTES]);
    let places = DISK_BYTES / REQUEST_BYTES as u64;
    let start = Instant::now();
    for request in 0..requests {
        // Any step that has no divisor in common with the number of places.
        let at = request * 1_234_567 % places * REQUEST_BYTES as u64;
        let slice = [VolatileSlice::from(&mut buffer.0[..])];
        if request % 2 == 0 {
            disk.write_at(at, &slice)?;
        } else {
            disk.read_at(at, &slice)?;
        }
    }
    Ok(start.elapsed().as_nanos() as u64 / requests)
}

fn failed(stage: &Stage, error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::io("measure requests in", &stage.dir)(std::io::Error::other(error))
}
