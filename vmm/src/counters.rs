//! What a machine has done, counted.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vmm_core::control::{Counters, DiskCounters, NetCounters};

use crate::devices::virtio::block::BlockCounters;
use crate::devices::virtio::net;
use crate::vcpu;

const PAGE_BYTES: u64 = 4096;

/// What counts in a machine; can be read whatever becomes of it.
#[derive(Clone, Default)]
pub struct Gauges {
    /// Of each processor.
    pub vcpus: Vec<vcpu::Gauge>,
    /// Of each disk.
    pub disks: Vec<Arc<BlockCounters>>,
    /// Of each network card.
    pub nets: Vec<Arc<net::NetCounters>>,
}

impl Gauges {
    /// What they show.
    pub fn read(&self) -> Counters {
        let mut exits = BTreeMap::new();
        let (mut cpu_us, mut run_delay_us) = (0, 0);
        for vcpu in &self.vcpus {
            vcpu.add_exits(&mut exits);
            let (ran, waited) = schedule(vcpu.thread_id()).unwrap_or_default();
            cpu_us += ran / 1000;
            run_delay_us += waited / 1000;
        }
        Counters {
            exits,
            cpu_us,
            run_delay_us,
            resident_mib: resident_mib().unwrap_or_default(),
            memory: None,
            disks: self.disks.iter().map(|disk| of_disk(disk)).collect(),
            nets: self.nets.iter().map(|net| of_net(net)).collect(),
        }
    }
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn of_disk(disk: &BlockCounters) -> DiskCounters {
    DiskCounters {
        reads: get(&disk.reads),
        read_bytes: get(&disk.read_bytes),
        writes: get(&disk.writes),
        written_bytes: get(&disk.written_bytes),
        flushes: get(&disk.flushes),
        discards: get(&disk.discards),
        errors: get(&disk.errors),
    }
}

fn of_net(net: &net::NetCounters) -> NetCounters {
    NetCounters {
        received: get(&net.received),
        received_bytes: get(&net.received_bytes),
        sent: get(&net.sent),
        sent_bytes: get(&net.sent_bytes),
        dropped: get(&net.dropped),
    }
}

/// Nanoseconds that a thread ran, and that it was ready and waited
/// (Documentation/scheduler/sched-stats.rst).
fn schedule(thread: i32) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Memory of this process that is backed (proc_pid_statm(5), the second number).
fn resident_mib() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some((pages * PAGE_BYTES) >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheduler_tells() {
        // SAFETY: no arguments, cannot fail.
        assert!(schedule(unsafe { libc::gettid() }).is_some());
        assert_eq!(schedule(-1), None);
    }
}
