//! What a VMM is asked and answers on its control socket, as JSON.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::forecast::Dirtied;
use crate::lifecycle::State;
use crate::migration::Progress;

/// `GET /v1/info`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// The guest.
    pub name: String,
    /// What it does now.
    pub state: State,
    /// Version of the VMM.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Epoch of the lease it runs under; none without a datastore.
    pub epoch: Option<u64>,
    /// How often the guest was rebooted in place.
    pub reboots: u64,
}

/// `GET /v1/counters`. All count up from the start of the process, over reboots in place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Returns from guest to VMM by reason.
    pub exits: BTreeMap<String, u64>,
    /// Processor time of the virtual processors, in microseconds.
    pub cpu_us: u64,
    /// Time they were ready to run and waited for a processor, in microseconds.
    pub run_delay_us: u64,
    /// Memory of the VMM's process that is backed: what the guest has touched, and a few MiB.
    #[serde(default)]
    pub resident_mib: u64,
    /// How it uses its memory; nothing before the first sample is complete.
    #[serde(default)]
    pub memory: Option<MemorySample>,
    /// Disks, in the order of the spec.
    pub disks: Vec<DiskCounters>,
    /// Network cards, in the order of the spec.
    #[serde(default)]
    pub nets: Vec<NetCounters>,
}

impl Counters {
    /// Add what another machine of the same guest has done.
    pub fn add(&mut self, other: &Self) {
        for (reason, count) in &other.exits {
            *self.exits.entry(reason.clone()).or_default() += count;
        }
        self.cpu_us += other.cpu_us;
        self.run_delay_us += other.run_delay_us;
        // Not a count: what is backed now.
        self.resident_mib = other.resident_mib;
        self.memory = other.memory;
        self.disks
            .resize(other.disks.len(), DiskCounters::default());
        for (disk, other) in self.disks.iter_mut().zip(&other.disks) {
            disk.reads += other.reads;
            disk.read_bytes += other.read_bytes;
            disk.writes += other.writes;
            disk.written_bytes += other.written_bytes;
            disk.flushes += other.flushes;
            disk.discards += other.discards;
            disk.errors += other.errors;
        }
        self.nets.resize(other.nets.len(), NetCounters::default());
        for (net, other) in self.nets.iter_mut().zip(&other.nets) {
            net.received += other.received;
            net.received_bytes += other.received_bytes;
            net.sent += other.sent;
            net.sent_bytes += other.sent_bytes;
            net.dropped += other.dropped;
        }
    }
}

/// How often the pages of a sample are looked at.
pub const LOOKS: usize = 3;

/// What a small random sample of pages said of all memory of the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemorySample {
    /// Pages that were watched.
    pub watched_pages: u64,
    /// Memory that existed when they were drawn.
    pub touched_mib: u64,
    /// How much of it was written within so long: at each look, the shortest time first.
    pub dirtied: [Dirtied; LOOKS],
    /// What was read or written; nothing where that cannot be told, or not yet.
    #[serde(default)]
    pub accessed: Option<Accessed>,
    /// Processor time that sampling has taken since the VMM started, in microseconds.
    pub cost_us: u64,
}

impl MemorySample {
    /// Memory that is written to: what was written within the longest time.
    pub fn written_mib(&self) -> u64 {
        self.dirtied[LOOKS - 1].bytes >> 20
    }

    /// Memory that is in use, as far as can be told: what is read or written, or only what is
    /// written.
    pub fn active_mib(&self) -> u64 {
        let accessed = self.accessed.filter(|accessed| accessed.taken_pages > 0);
        accessed.map_or(self.written_mib(), |accessed| {
            self.touched_mib * accessed.missed_pages / accessed.taken_pages
        })
    }
}

/// Pages that were taken away from the guest for a while: whoever reads or writes one misses it
/// and is given it back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accessed {
    /// Pages that were taken away, over the latest periods.
    pub taken_pages: u64,
    /// Those of them that were missed.
    pub missed_pages: u64,
    /// How long each was away unless it was missed, in microseconds.
    pub within_us: u64,
}

/// What a disk has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCounters {
    /// Read requests.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write requests.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flush requests.
    #[serde(default)]
    pub flushes: u64,
    /// Requests to discard or zero a range.
    #[serde(default)]
    pub discards: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// What a network card has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetCounters {
    /// Frames given to the guest.
    pub received: u64,
    /// Bytes given to the guest.
    pub received_bytes: u64,
    /// Frames the guest sent.
    pub sent: u64,
    /// Bytes the guest sent.
    pub sent_bytes: u64,
    /// Frames lost in either direction.
    pub dropped: u64,
}

/// Something that happened; a line of `GET /v1/events`. The first tells the present state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Microseconds of `CLOCK_BOOTTIME`.
    pub boottime_us: u64,
    /// What.
    #[serde(flatten)]
    pub what: Happening,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event", content = "detail")]
pub enum Happening {
    /// The state changed.
    State(State),
    /// The guest rebooted in place.
    Rebooted,
    /// The guest's kernel reported a panic.
    Panicked,
    /// The lease ran out; nothing is written until it is ours again.
    LeaseSuspended,
    /// The lease is ours again.
    LeaseResumed,
    /// A migration began, ended a round of pre-copy, or is over.
    Migration(Box<Progress>),
}

/// The body of every refusal: one line for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What was refused, why, and what helps.
    pub error: String,
}
