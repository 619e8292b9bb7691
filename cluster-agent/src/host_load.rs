//! How busy this host is, guests and all.

use std::fs;
use std::thread::available_parallelism;

use cluster_core::model::Resources;
use cluster_core::observation::HostCounted;
use shared_storage::clock::boottime_us;

use crate::host_facts::meminfo_mib;

/// The kernel counts processor time in hundredths of a second wherever user space reads it
/// (`USER_HZ`, proc_stat(5)).
const US_PER_TICK: u64 = 10_000;

/// What the kernel has counted so far; nothing where /proc is unlike any known.
pub fn count() -> Option<HostCounted> {
    let at_us = boottime_us();
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let total = meminfo_mib(&meminfo, "MemTotal:")?;
    let available = meminfo_mib(&meminfo, "MemAvailable:")?;
    // The pool of huge pages counts as used, and as guests' once they use it: as neither here.
    let pool = meminfo_mib(&meminfo, "Hugetlb:").unwrap_or_default();
    let cores = available_parallelism().ok()?.get() as u64;
    Some(HostCounted {
        at_us,
        busy_us: busy_us(&stat)?,
        used_mib: total.saturating_sub(available + pool),
        machine: Resources::new(cores * 1000, total),
    })
}

/// Everything but idling and waiting for I/O. Time in a guest is part of user time.
fn busy_us(stat: &str) -> Option<u64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line
        .split_ascii_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else {
        return None;
    };
    Some((user + nice + system + irq + softirq) * US_PER_TICK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_guests_is_counted_once() {
        let stat = "cpu  100 1 20 5000 300 3 4 7 60 0\ncpu0 100 1 20 5000 300 3 4 7 60 0\n";
        assert_eq!(busy_us(stat), Some(1_280_000));
        assert_eq!(busy_us("intr 5"), None);
    }

    #[test]
    fn this_machine_is_counted() {
        let (first, second) = (count().unwrap(), count().unwrap());
        assert!(first.used_mib > 0 && second.busy_us >= first.busy_us);
    }
}
