//! What is paid all the time: a heartbeat, and the gate in front of every block request.

use std::fmt;
use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use storage_core::record::{HeartbeatRecord, Incarnation};
use vm_memory::VolatileSlice;

use super::{PATIENCE, Spread, Stage};
use crate::clock::boottime_us;
use crate::error::StoreError;
use crate::gate::{AlwaysOpen, Gate};
use crate::heartbeat::HeartbeatWriter;
use crate::image::{self, Disk, DiskError, DiskOptions, Flights, Format, Landing};

const HEARTBEATS: u64 = 400;
/// For how long heartbeats are counted.
const COUNTED: Duration = Duration::from_secs(10);
const PASSES: u32 = 2_000_000;
/// What a disk of the measurement has.
const DISK_BYTES: u64 = 16 << 20;
const REQUEST_BYTES: usize = 4096;
/// Requests that go to the kernel in one call.
const AT_ONCE: u16 = 64;

/// What a block request costs through all that a virtual disk's request goes through but the
/// virtqueue: half are reads, half are writes.
#[derive(Serialize)]
pub(super) struct BlockPath {
    request_bytes: usize,
    /// From and to the page cache, where requests are fastest.
    cached: RequestNs,
    /// Past it; none where the file system cannot do that.
    direct: Option<RequestNs>,
    /// Past it and many at once, as guests' raw disks go; none where that cannot be done.
    flights: Option<RequestNs>,
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
        let ways = [
            (Some(&self.cached), "page cache"),
            (self.direct.as_ref(), "direct I/O"),
            (self.flights.as_ref(), "direct I/O, 64 in one call"),
        ];
        let bytes = self.request_bytes;
        let mut margin = "";
        for (took, way) in ways {
            let Some(RequestNs {
                leased,
                open,
                open_again,
            }) = took
            else {
                continue;
            };
            write!(
                f,
                "{margin}{leased} ns with a lease, {open} and {open_again} ns without ({bytes} bytes, {way})"
            )?;
            margin = "\n                     ";
        }
        Ok(())
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

/// Counted while a host keeps its heartbeat.
pub(super) fn heartbeats_per_s(stage: &Stage) -> Result<f64, StoreError> {
    let keeper = stage.host("beats")?;
    let (before, start) = (keeper.page().counter(), Instant::now());
    thread::sleep(COUNTED);
    let beats = keeper.page().counter() - before;
    Ok(beats as f64 / start.elapsed().as_secs_f64())
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
    let [cached, direct, flights] = [Way::Cached, Way::Direct, Way::Flights];
    Ok(BlockPath {
        request_bytes: REQUEST_BYTES,
        cached: requests(stage, gates, cached)?,
        direct: requests(stage, gates, direct).ok(),
        flights: requests(stage, gates, flights).ok(),
    })
}

/// How requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Cached,
    Direct,
    Flights,
}

impl Way {
    /// How many batches, and requests in each.
    fn batches(self) -> (usize, u64) {
        match self {
            Self::Cached => (100, 2000),
            Self::Direct => (60, 100),
            Self::Flights => (60, 20 * u64::from(AT_ONCE)),
        }
    }

    fn batch(self, disk: &Arc<Disk>) -> Result<u64, DiskError> {
        let (_, requests) = self.batches();
        match self {
            Self::Cached | Self::Direct => batch(disk, requests),
            Self::Flights => flown(disk, requests),
        }
    }
}

/// In turn and on one file, so that what disturbs the machine disturbs all alike, and where the file
/// lies makes no difference.
fn requests(stage: &Stage, gates: &[Arc<dyn Gate>; 3], way: Way) -> Result<RequestNs, StoreError> {
    let path = stage.dir.join(format!("requests-{way:?}.raw"));
    image::create(None, &path, Format::Raw, DISK_BYTES).map_err(|error| failed(stage, error))?;
    let mut disks = Vec::new();
    for gate in gates {
        let disk = Disk::open(DiskOptions {
            direct: way != Way::Cached,
            gate: gate.clone(),
            deferred: true,
            ..DiskOptions::new(&path, Format::Raw)
        });
        let disk = disk.map_err(|error| failed(stage, error))?;
        disks.push((Arc::new(disk), Vec::new()));
    }
    let (rounds, _) = way.batches();
    // The first round makes the blocks.
    for round in 0..=rounds {
        for (disk, samples) in &mut disks {
            disk.acquire().map_err(|error| failed(stage, error))?;
            let took = way.batch(disk).map_err(|error| failed(stage, error))?;
            disk.release().map_err(|error| failed(stage, error))?;
            samples.extend((round > 0).then_some(took));
        }
    }
    let median = |number: usize| Spread::of(disks[number].1.clone()).p50;
    Ok(RequestNs {
        leased: median(0),
        open: median(1),
        open_again: median(2),
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

/// The same with many under way, handed to the kernel together.
fn flown(disk: &Arc<Disk>, requests: u64) -> Result<u64, DiskError> {
    let unsupported = || DiskError::Io(io::ErrorKind::Unsupported.into());
    let mut buffer = Buffer([7; REQUEST_BYTES]);
    let slice = [VolatileSlice::from(&mut buffer.0[..])];
    let mut flights = Flights::of(disk, AT_ONCE).ok_or_else(unsupported)?;
    let places = DISK_BYTES / REQUEST_BYTES as u64;
    let mut landed = Vec::new();
    let start = Instant::now();
    for call in 0..requests / u64::from(AT_ONCE) {
        for number in 0..u64::from(AT_ONCE) {
            let request = call * u64::from(AT_ONCE) + number;
            let at = request * 1_234_567 % places * REQUEST_BYTES as u64;
            // SAFETY: the buffer outlives `flights`, which waits for what is under way; nobody looks
            // into it.
            let boarded = unsafe { flights.board((), request.is_multiple_of(2), at, |()| &slice) };
            boarded.map_err(|()| unsupported())?;
        }
        flights.depart(&mut landed);
        flights.arrivals(true, &mut landed);
        if landed
            .drain(..)
            .any(|((), landing)| !matches!(landing, Landing::Done))
        {
            return Err(unsupported());
        }
    }
    Ok(start.elapsed().as_nanos() as u64 / requests)
}

fn failed(stage: &Stage, error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::io("measure requests in", &stage.dir)(io::Error::other(error))
}
