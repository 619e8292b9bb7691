//! What the guest and those who read its report agree on, word for word.
//!
//! The report is a region of guest memory at a fixed address: one [`Header`], then one
//! [`VcpuRecord`] for each vCPU. Every field is a little-endian 64-bit word with one writer, so a
//! reader beside the running guest always sees whole values, if not all of one instant.

use core::sync::atomic::AtomicU64;

/// Guest-physical address of the report.
pub const REPORT_GPA: u64 = 0x80_0000;
/// First address of the memory that the probe fills; below lie the probe and its boot data.
pub const FILL_START_GPA: u64 = 0x100_0000;
/// `GODPROBE`: written last, once the header is complete.
pub const MAGIC: u64 = u64::from_le_bytes(*b"GODPROBE");
/// Raised with every change of this layout.
pub const VERSION: u64 = 3;
/// The most vCPUs the probe drives.
pub const MAX_VCPUS: usize = 64;
/// Bytes of the header, and so the offset of the first vCPU record.
pub const HEADER_BYTES: usize = 4096;
/// Bytes of one vCPU record.
pub const VCPU_BYTES: usize = 4096;
/// Bytes of the whole report.
pub const REPORT_BYTES: usize = HEADER_BYTES + MAX_VCPUS * VCPU_BYTES;
/// Gaps a vCPU remembers, the newest over the oldest.
pub const GAP_LOG: usize = 64;
/// The longest panic or fault message kept.
pub const MESSAGE_BYTES: usize = 512;

/// [`Header::state`]: writing the fill pages.
pub const STATE_FILLING: u64 = 1;
/// [`Header::state`]: the loop runs on every vCPU.
pub const STATE_RUNNING: u64 = 2;
/// [`Header::state`]: stopped by a panic or a fault; see [`Header::message`].
pub const STATE_FAILED: u64 = 3;

/// [`Header::command`] bit: verify as fast as possible instead of at the configured rate.
pub const COMMAND_SWEEP: u64 = 1;
/// [`Header::command`] bit: leave the hot pages alone.
pub const COMMAND_REST: u64 = 2;
/// [`Header::command`] bit: end by a triple fault.
pub const COMMAND_END: u64 = 4;

/// [`VcpuRecord::bad_kind`]: the page holds zeros where it must not.
pub const BAD_LOST: u64 = 1;
/// [`VcpuRecord::bad_kind`]: the page holds what an earlier generation wrote.
pub const BAD_STALE: u64 = 2;
/// [`VcpuRecord::bad_kind`]: the page holds something else.
pub const BAD_DAMAGED: u64 = 3;

/// The guest as a whole.
#[repr(C, align(4096))]
pub struct Header {
    /// [`MAGIC`].
    pub magic: AtomicU64,
    /// [`VERSION`].
    pub version: AtomicU64,
    /// One of the `STATE_` values.
    pub state: AtomicU64,
    /// vCPUs that the command line asked for.
    pub vcpus: AtomicU64,
    /// vCPUs that have been started.
    pub vcpus_up: AtomicU64,
    /// vCPUs that have filled their slice and reached their loop.
    pub vcpus_running: AtomicU64,
    /// Bytes of RAM that the boot memory map names.
    pub ram_bytes: AtomicU64,
    /// Pages filled, hot ones included.
    pub fill_pages: AtomicU64,
    /// Pages kept dirty, the first ones of each vCPU's slice.
    pub hot_pages: AtomicU64,
    /// The seed of all page contents.
    pub seed: AtomicU64,
    /// 1 if the host tells the steal time.
    pub steal_time: AtomicU64,
    /// 1 if the clock is kvmclock, 0 if it is the bare TSC at an assumed frequency.
    pub kvmclock: AtomicU64,
    /// Clock when the filling was done, nanoseconds.
    pub filled_ns: AtomicU64,
    /// The only word written from outside: `COMMAND_` bits.
    pub command: AtomicU64,
    /// Bytes used in `message`.
    pub message_len: AtomicU64,
    /// Why the guest failed, UTF-8.
    pub message: [AtomicU64; MESSAGE_BYTES / 8],
}

/// One interval in which a vCPU did not run.
#[repr(C)]
pub struct GapRecord {
    /// Guest clock when the vCPU ran again, nanoseconds.
    pub at_ns: AtomicU64,
    /// Length by the time-stamp counter, nanoseconds. The truth where the guest stays on one
    /// machine whose TSC cannot be offset; stops with the guest elsewhere.
    pub tsc_ns: AtomicU64,
    /// Length by the guest clock, nanoseconds.
    pub clock_ns: AtomicU64,
    /// How much of it the vCPU's thread stood ready but had no CPU, by KVM's steal time,
    /// nanoseconds: other load on the machine, not a pause. 0 where the host does not tell.
    pub steal_ns: AtomicU64,
}

/// One vCPU.
#[repr(C, align(4096))]
pub struct VcpuRecord {
    /// Turns of the loop: stands still when the vCPU does.
    pub turns: AtomicU64,
    /// Guest clock at the last turn, nanoseconds.
    pub now_ns: AtomicU64,
    /// Time-stamp counter at the last turn.
    pub now_tsc: AtomicU64,
    /// Hot pages rewritten.
    pub written_pages: AtomicU64,
    /// Complete passes over the hot pages.
    pub passes: AtomicU64,
    /// Pages compared with what they must hold.
    pub verified_pages: AtomicU64,
    /// Complete sweeps over the slice.
    pub sweeps: AtomicU64,
    /// Comparisons that failed.
    pub bad_pages: AtomicU64,
    /// Address of the first page that failed.
    pub bad_gpa: AtomicU64,
    /// What was wrong with it: one of the `BAD_` values.
    pub bad_kind: AtomicU64,
    /// The generation it should have held.
    pub bad_generation: AtomicU64,
    /// Index of its first 64-bit word that differed.
    pub bad_word: AtomicU64,
    /// What that word held.
    pub bad_found: AtomicU64,
    /// Longest gap by the time-stamp counter, nanoseconds.
    pub max_gap_tsc_ns: AtomicU64,
    /// Longest gap by the time-stamp counter, less what was stolen of it, nanoseconds.
    pub max_pause_ns: AtomicU64,
    /// Longest gap by the guest clock, nanoseconds.
    pub max_gap_clock_ns: AtomicU64,
    /// Times that the guest clock went backwards.
    pub clock_backwards: AtomicU64,
    /// Times that the TSC went backwards (it may, when a guest moves to another machine).
    pub tsc_backwards: AtomicU64,
    /// Timer interrupts taken.
    pub ticks: AtomicU64,
    /// Times that the host said it had stopped the guest (kvmclock's flag for that).
    pub stops: AtomicU64,
    /// The gap of the latest of them: the blackout, when the guest was moved.
    pub last_stop: GapRecord,
    /// Gaps over the threshold; the newest is in `gaps[(gap_count - 1) % GAP_LOG]`.
    pub gap_count: AtomicU64,
    /// The newest gaps over the threshold.
    pub gaps: [GapRecord; GAP_LOG],
}

/// The whole report.
#[repr(C)]
pub struct ReportRegion {
    /// The guest as a whole.
    pub header: Header,
    /// One record each vCPU.
    pub vcpus: [VcpuRecord; MAX_VCPUS],
}

const _: () = assert!(size_of::<Header>() == HEADER_BYTES);
const _: () = assert!(size_of::<VcpuRecord>() == VCPU_BYTES);
const _: () = assert!(size_of::<ReportRegion>() == REPORT_BYTES);
