//! Processor time of a hypervisor without that of its guest.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Processor time that `pid` has used, less that of the threads whose names say that they are
/// the guest's processors. Threads that have ended count.
pub fn without_guest(pid: u32, is_vcpu: fn(&str) -> bool) -> io::Result<Duration> {
    Ok(whole(pid)?.saturating_sub(Processors::of(pid, is_vcpu)?.used()))
}

/// Processor time that `pid` has used, also when it has ended and nobody has waited for it.
pub fn whole(pid: u32) -> io::Result<Duration> {
    Ok(time(ticks(&fs::read_to_string(format!(
        "/proc/{pid}/stat"
    ))?)?))
}

/// The threads that are a guest's processors.
pub struct Processors(Vec<PathBuf>);

impl Processors {
    /// Those of `pid`, which are told by their names.
    pub fn of(pid: u32, is_vcpu: fn(&str) -> bool) -> io::Result<Processors> {
        let mut stats = Vec::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = task?.path().join("stat");
            // A thread may end while we look.
            let stat = fs::read_to_string(&path).unwrap_or_default();
            if name(&stat).is_some_and(is_vcpu) {
                stats.push(path);
            }
        }
        Ok(Processors(stats))
    }

    /// Processor time that those have used that live.
    pub fn used(&self) -> Duration {
        let stats = self.0.iter().map(fs::read_to_string);
        let ticks = stats.map(|stat| ticks(&stat.unwrap_or_default()).unwrap_or(0));
        time(ticks.sum())
    }
}

fn time(ticks: u64) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second();
    Duration::from_secs_f64(ticks as f64 / per_second as f64)
}

fn name(stat: &str) -> Option<&str> {
    Some(stat.split_once('(')?.1.rsplit_once(')')?.0)
}

/// User and system time, fields 14 and 15 (proc_pid_stat(5)).
fn ticks(stat: &str) -> io::Result<u64> {
    let damaged = || io::Error::from(io::ErrorKind::InvalidData);
    let rest = stat.rsplit_once(')').ok_or_else(damaged)?.1;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next().zip(next()).ok_or_else(damaged)?)
        .map(|(user, system)| user + system)
        .ok_or_else(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "7 (CPU 0/KVM) x) S 1 2 3 4 5 6 7 8 9 10 11 12 13";
        assert_eq!(name(stat), Some("CPU 0/KVM) x"));
        assert_eq!(ticks(stat).unwrap(), 11 + 12);
        assert!(ticks("7 (x) S 1").is_err());
    }
}
