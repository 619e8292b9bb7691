//! What the agent itself uses (`proc_pid_stat(5)`, `proc_pid_statm(5)`).

use std::fs;
use std::time::Duration;

/// Fields 14 and 15 of `stat`, counted from the one after the name (field 3).
const UTIME: usize = 11;

/// What a process uses.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Processor time from its start on.
    pub cpu: Duration,
    /// Memory that it has, in bytes.
    pub resident_bytes: u64,
    /// Files, sockets and the like that it has open.
    pub open_files: u64,
}

impl Usage {
    /// Of this process; nothing where /proc does not tell.
    pub fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The name may contain anything, blanks and brackets too.
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut times = fields.split(' ').skip(UTIME);
        let ticks: u64 = times.next()?.parse::<u64>().ok()? + times.next()?.parse::<u64>().ok()?;
        let ticks_per_s = rustix::param::clock_ticks_per_second();
        let statm = fs::read_to_string("/proc/self/statm").ok()?;
        let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
        Some(Self {
            cpu: Duration::from_micros(ticks * 1_000_000 / ticks_per_s),
            resident_bytes: pages * rustix::param::page_size() as u64,
            open_files: fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_something() {
        let usage = Usage::read().unwrap();
        assert!(
            usage.resident_bytes > 100_000 && usage.open_files >= 3,
            "{usage:?}"
        );
    }
}
