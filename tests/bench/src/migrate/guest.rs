//! A probe guest seen from outside: its report, read from the memory of whoever runs it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use probe::abi::{COMMAND_REST, COMMAND_SWEEP, Header, MAGIC, REPORT_BYTES, REPORT_GPA};
use probe::report::{Report, State};

use super::LIMIT;

const POLL: Duration = Duration::from_millis(2);

/// The memory of a guest that another process runs.
pub struct Guest {
    memory: File,
    /// Where the report lies in that process.
    report_at: u64,
}

impl Guest {
    /// Find the guest in process `pid`, once its probe has begun.
    pub fn find(pid: u32, memory_mib: u64) -> Result<Guest, String> {
        let memory = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))
            .map_err(|error| format!("cannot look into process {pid}: {error}"))?;
        wait("the probe's report", || {
            let maps = fs::read_to_string(format!("/proc/{pid}/maps"))
                .map_err(|error| format!("the process has ended: {error}"))?;
            Ok(starts(&maps, memory_mib << 20)
                .map(|start| start + REPORT_GPA)
                .find(|at| has_magic(&memory, *at)))
        })
        .map(|report_at| Guest { memory, report_at })
    }

    /// What it says now.
    pub fn report(&self) -> Result<Report, String> {
        let mut bytes = vec![0; REPORT_BYTES];
        self.memory
            .read_exact_at(&mut bytes, self.report_at)
            .map_err(|error| format!("cannot read the probe's report: {error}"))?;
        let report = Report::decode(&bytes).map_err(|error| error.to_string())?;
        match &report.state {
            State::Failed(why) => Err(format!("the probe failed: {why}")),
            _ => Ok(report),
        }
    }

    /// Wait until it has filled its memory and is at work.
    pub fn wait_running(&self) -> Result<(), String> {
        wait("the probe's work", || {
            Ok(self.report()?.is_running().then_some(()))
        })
    }

    /// What it says once each of its processors has run on here: only then has it noticed for
    /// how long it did not.
    pub fn report_on_arrival(&self) -> Result<Report, String> {
        let before = self.report()?;
        wait("the probe to go on", || {
            let now = self.report()?;
            let mut both = now.vcpus.iter().zip(&before.vcpus);
            let goes_on = both.all(|(now, before)| now.turns > before.turns + 1);
            Ok(goes_on.then_some(now))
        })
    }

    /// For how long it was stopped after `since_ns` of its clock, nanoseconds. Where nobody
    /// told it that it had been, its longest gap has to stand in.
    pub fn blackout_ns(report: &Report, since_ns: u64) -> u64 {
        let longest = report.longest_gap_since_ns(since_ns);
        report.last_stop_since_ns(since_ns).unwrap_or(longest)
    }

    /// Let it do again what it did before it was told to verify.
    pub fn work_on(&self) -> Result<(), String> {
        self.command(0)
    }

    fn command(&self, bits: u64) -> Result<(), String> {
        let command = self.report_at + offset_of!(Header, command) as u64;
        self.memory
            .write_all_at(&bits.to_le_bytes(), command)
            .map_err(|error| format!("cannot command the probe: {error}"))
    }

    /// Let it compare every page with what it must hold.
    pub fn verify(&self) -> Result<(), String> {
        self.command(COMMAND_SWEEP | COMMAND_REST)?;
        let before = self.report()?;
        if before.fill_pages == 0 {
            return Ok(());
        }
        // The sweep that is under way began on the other side.
        let sweeps = before.sweeps() + 2;
        let after = wait("two sweeps over its memory", || {
            let report = self.report()?;
            Ok((report.sweeps() >= sweeps || report.bad_pages() > 0).then_some(report))
        })?;
        match after.bad_pages() {
            0 => Ok(()),
            bad => Err(format!("{bad} pages did not arrive as they were")),
        }
    }
}

/// Repeat `look` until it finds something.
pub fn wait<T>(
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>, String>,
) -> Result<T, String> {
    let give_up = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() > give_up {
            return Err(format!("waited {} s for {what}", LIMIT.as_secs()));
        }
        thread::sleep(POLL);
    }
}

fn has_magic(memory: &File, at: u64) -> bool {
    let mut word = [0; 8];
    let read: io::Result<()> = memory.read_exact_at(&mut word, at);
    read.is_ok() && u64::from_le_bytes(word) == MAGIC
}

/// Where the mappings start that could hold so much memory.
fn starts(maps: &str, bytes: u64) -> impl Iterator<Item = u64> {
    maps.lines().filter_map(move |line| {
        let (start, rest) = line.split_once('-')?;
        let (end, _) = rest.split_once(' ')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(end, 16).ok()?;
        (end - start >= bytes).then_some(start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_that_are_large_enough_are_found() {
        let maps = "1000-2000 r-xp 0 fe:00 1 /bin/x\n7f0000000000-7f0080000000 rw-p 0 00:00 0\n";
        let found: Vec<u64> = starts(maps, 2048 << 20).collect();
        assert_eq!(found, [0x7f00_0000_0000]);
    }
}
