//! Reads the report out of guest memory.

use core::mem::offset_of;

use thiserror::Error;

use crate::abi::{
    BAD_DAMAGED, BAD_LOST, BAD_STALE, GAP_LOG, GapRecord, HEADER_BYTES, Header, MAGIC, MAX_VCPUS,
    MESSAGE_BYTES, REPORT_BYTES, REPORT_GPA, STATE_FAILED, STATE_FILLING, STATE_RUNNING,
    VCPU_BYTES, VERSION, VcpuRecord,
};

/// What the probe said of itself at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How far it is.
    pub state: State,
    /// Bytes of RAM in its boot memory map.
    pub ram_bytes: u64,
    /// Pages filled, hot ones included.
    pub fill_pages: u64,
    /// Pages kept dirty.
    pub hot_pages: u64,
    /// The seed of the page contents.
    pub seed: u64,
    /// Whether its clock is kvmclock.
    pub kvmclock: bool,
    /// Whether the host tells the steal time.
    pub steal_time: bool,
    /// Its clock when the filling was done, nanoseconds.
    pub filled_ns: u64,
    /// One entry each vCPU.
    pub vcpus: Vec<Vcpu>,
}

/// How far the probe is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Writing its pages for the first time.
    Filling,
    /// Every vCPU is in its loop.
    Running,
    /// Stopped, and why.
    Failed(String),
}

/// One vCPU; see [`VcpuRecord`] for the fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Vcpu {
    pub turns: u64,
    pub now_ns: u64,
    pub now_tsc: u64,
    pub written_pages: u64,
    pub passes: u64,
    pub verified_pages: u64,
    pub sweeps: u64,
    pub bad_pages: u64,
    /// The first bad page.
    pub first_bad: Option<BadPage>,
    pub max_gap_tsc_ns: u64,
    pub max_gap_clock_ns: u64,
    pub max_pause_ns: u64,
    pub clock_backwards: u64,
    pub tsc_backwards: u64,
    pub ticks: u64,
    pub stops: u64,
    /// The gap of the latest stop, if the host ever said that it had stopped the guest.
    pub last_stop: Option<Gap>,
    pub gap_count: u64,
    /// The logged gaps that are still known, oldest first.
    pub gaps: Vec<Gap>,
}

/// A page that did not hold what it must.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadPage {
    /// Its guest-physical address.
    pub gpa: u64,
    /// What is wrong.
    pub kind: BadKind,
    /// The generation it should be in.
    pub generation: u64,
    /// Index of the first wrong 64-bit word.
    pub word: u64,
    /// What that word held.
    pub found: u64,
}

/// What is wrong with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadKind {
    /// All zeros.
    Lost,
    /// What an earlier generation wrote.
    Stale,
    /// Anything else.
    Damaged,
}

/// An interval in which a vCPU did not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Guest clock when it ran again, nanoseconds.
    pub at_ns: u64,
    /// Length by the TSC, nanoseconds.
    pub tsc_ns: u64,
    /// Length by the guest clock, nanoseconds.
    pub clock_ns: u64,
    /// How much of it was other load on the host's CPUs, nanoseconds.
    pub steal_ns: u64,
}

impl Gap {
    /// How long the vCPU was kept from running by something else than other load, nanoseconds.
    pub fn pause_ns(&self) -> u64 {
        self.tsc_ns.saturating_sub(self.steal_ns)
    }
}

/// Why there is no report.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReportError {
    /// The slice is shorter than a report.
    #[error("a probe report has {REPORT_BYTES} bytes, here are {0}: read all of them")]
    Short(usize),
    /// No magic number (yet).
    #[error(
        "no probe report at {REPORT_GPA:#x}: the probe has not started yet, or it is not the guest"
    )]
    Absent,
    /// Another version's layout.
    #[error(
        "the probe report has version {0}, this reader knows {VERSION}: build both from one tree"
    )]
    Version(u64),
    /// A value that no probe writes.
    #[error("the probe report has {what} {value}: guest memory is damaged")]
    Damaged {
        /// Which value.
        what: &'static str,
        /// What it is.
        value: u64,
    },
}

impl Report {
    /// Decodes the [`REPORT_BYTES`] bytes at [`REPORT_GPA`].
    ///
    /// # Errors
    /// [`ReportError::Absent`] until the probe has started; the others when the bytes are no report.
    pub fn decode(bytes: &[u8]) -> Result<Report, ReportError> {
        let bytes = bytes
            .get(..REPORT_BYTES)
            .ok_or(ReportError::Short(bytes.len()))?;
        let word = |offset| word(bytes, offset);
        if word(offset_of!(Header, magic)) != MAGIC {
            return Err(ReportError::Absent);
        }
        let version = word(offset_of!(Header, version));
        if version != VERSION {
            return Err(ReportError::Version(version));
        }
        let count = word(offset_of!(Header, vcpus));
        if !(1..=MAX_VCPUS as u64).contains(&count) {
            return Err(ReportError::Damaged {
                what: "a vCPU count of",
                value: count,
            });
        }
        let records = bytes[HEADER_BYTES..]
            .chunks_exact(VCPU_BYTES)
            .take(count as usize);
        Ok(Report {
            state: state(bytes)?,
            ram_bytes: word(offset_of!(Header, ram_bytes)),
            fill_pages: word(offset_of!(Header, fill_pages)),
            hot_pages: word(offset_of!(Header, hot_pages)),
            seed: word(offset_of!(Header, seed)),
            kvmclock: word(offset_of!(Header, kvmclock)) != 0,
            steal_time: word(offset_of!(Header, steal_time)) != 0,
            filled_ns: word(offset_of!(Header, filled_ns)),
            vcpus: records.map(vcpu).collect::<Result<_, _>>()?,
        })
    }

    /// Whether every vCPU is in its loop.
    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// Pages that were not what they must be, over all vCPUs.
    pub fn bad_pages(&self) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.bad_pages).sum()
    }

    /// Sweeps over all filled memory that every vCPU has completed.
    pub fn sweeps(&self) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.sweeps).min().unwrap_or(0)
    }

    /// Hot pages rewritten, over all vCPUs.
    pub fn written_pages(&self) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.written_pages).sum()
    }

    /// The longest gap that ended after `since_ns` of the guest clock, over all vCPUs, by the TSC,
    /// nanoseconds. Gaps shorter than the probe's `gap_us` count as none.
    pub fn longest_gap_since_ns(&self, since_ns: u64) -> u64 {
        self.gaps_since(since_ns)
            .map(|gap| gap.tsc_ns)
            .max()
            .unwrap_or(0)
    }

    /// The same without what other load on the host's CPUs took: the blackout of a migration,
    /// measured on a machine that does other things too.
    pub fn longest_pause_since_ns(&self, since_ns: u64) -> u64 {
        self.gaps_since(since_ns)
            .map(Gap::pause_ns)
            .max()
            .unwrap_or(0)
    }

    /// The longest of the vCPUs' latest stops by the host, if any ended after `since_ns` of the
    /// guest clock, by the TSC, nanoseconds: the blackout of the migration that just ended.
    pub fn last_stop_since_ns(&self, since_ns: u64) -> Option<u64> {
        let stops = self.vcpus.iter().filter_map(|vcpu| vcpu.last_stop);
        stops
            .filter(|stop| stop.at_ns > since_ns)
            .map(|stop| stop.tsc_ns)
            .max()
    }

    fn gaps_since(&self, since_ns: u64) -> impl Iterator<Item = &Gap> {
        self.vcpus
            .iter()
            .flat_map(|vcpu| &vcpu.gaps)
            .filter(move |gap| gap.at_ns > since_ns)
    }

    /// The guest clock, nanoseconds: the latest any vCPU has seen.
    pub fn now_ns(&self) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.now_ns).max().unwrap_or(0)
    }
}

fn word(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}

fn state(bytes: &[u8]) -> Result<State, ReportError> {
    match word(bytes, offset_of!(Header, state)) {
        STATE_FILLING => Ok(State::Filling),
        STATE_RUNNING => Ok(State::Running),
        STATE_FAILED => {
            let start = offset_of!(Header, message);
            let len = word(bytes, offset_of!(Header, message_len)).min(MESSAGE_BYTES as u64);
            let message = &bytes[start..start + len as usize];
            Ok(State::Failed(String::from_utf8_lossy(message).into_owned()))
        }
        value => Err(ReportError::Damaged {
            what: "state",
            value,
        }),
    }
}

fn vcpu(bytes: &[u8]) -> Result<Vcpu, ReportError> {
    let word = |offset| word(bytes, offset);
    let gap_count = word(offset_of!(VcpuRecord, gap_count));
    let kind = match word(offset_of!(VcpuRecord, bad_kind)) {
        0 => None,
        BAD_LOST => Some(BadKind::Lost),
        BAD_STALE => Some(BadKind::Stale),
        BAD_DAMAGED => Some(BadKind::Damaged),
        value => {
            return Err(ReportError::Damaged {
                what: "bad page kind",
                value,
            });
        }
    };
    let first_bad = kind.map(|kind| BadPage {
        gpa: word(offset_of!(VcpuRecord, bad_gpa)),
        kind,
        generation: word(offset_of!(VcpuRecord, bad_generation)),
        word: word(offset_of!(VcpuRecord, bad_word)),
        found: word(offset_of!(VcpuRecord, bad_found)),
    });
    let gap_at = |base: usize| Gap {
        at_ns: word(base + offset_of!(GapRecord, at_ns)),
        tsc_ns: word(base + offset_of!(GapRecord, tsc_ns)),
        clock_ns: word(base + offset_of!(GapRecord, clock_ns)),
        steal_ns: word(base + offset_of!(GapRecord, steal_ns)),
    };
    let gap = |index: u64| {
        let slot = (index % GAP_LOG as u64) as usize;
        gap_at(offset_of!(VcpuRecord, gaps) + slot * size_of::<GapRecord>())
    };
    let stops = word(offset_of!(VcpuRecord, stops));
    Ok(Vcpu {
        turns: word(offset_of!(VcpuRecord, turns)),
        now_ns: word(offset_of!(VcpuRecord, now_ns)),
        now_tsc: word(offset_of!(VcpuRecord, now_tsc)),
        written_pages: word(offset_of!(VcpuRecord, written_pages)),
        passes: word(offset_of!(VcpuRecord, passes)),
        verified_pages: word(offset_of!(VcpuRecord, verified_pages)),
        sweeps: word(offset_of!(VcpuRecord, sweeps)),
        bad_pages: word(offset_of!(VcpuRecord, bad_pages)),
        first_bad,
        max_gap_tsc_ns: word(offset_of!(VcpuRecord, max_gap_tsc_ns)),
        max_gap_clock_ns: word(offset_of!(VcpuRecord, max_gap_clock_ns)),
        max_pause_ns: word(offset_of!(VcpuRecord, max_pause_ns)),
        clock_backwards: word(offset_of!(VcpuRecord, clock_backwards)),
        tsc_backwards: word(offset_of!(VcpuRecord, tsc_backwards)),
        ticks: word(offset_of!(VcpuRecord, ticks)),
        stops,
        last_stop: (stops > 0).then(|| gap_at(offset_of!(VcpuRecord, last_stop))),
        gap_count,
        gaps: (gap_count.saturating_sub(GAP_LOG as u64)..gap_count)
            .map(gap)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(fields: &[(usize, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; REPORT_BYTES];
        let header = [
            (offset_of!(Header, magic), MAGIC),
            (offset_of!(Header, version), VERSION),
            (offset_of!(Header, state), STATE_RUNNING),
            (offset_of!(Header, vcpus), 2),
        ];
        for (offset, value) in header.iter().chain(fields) {
            bytes[*offset..*offset + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn the_newest_gaps_are_read_in_order() {
        let record = HEADER_BYTES + VCPU_BYTES;
        let gaps = record + offset_of!(VcpuRecord, gaps);
        let (newest, oldest) = (
            gaps + size_of::<GapRecord>(),
            gaps + 2 * size_of::<GapRecord>(),
        );
        let stolen = newest + offset_of!(GapRecord, steal_ns);
        let bytes = report(&[
            (stolen, 4),
            (
                record + offset_of!(VcpuRecord, gap_count),
                GAP_LOG as u64 + 2,
            ),
            (newest + offset_of!(GapRecord, at_ns), 90),
            (newest + offset_of!(GapRecord, tsc_ns), 5),
            (oldest + offset_of!(GapRecord, at_ns), 10),
            (oldest + offset_of!(GapRecord, tsc_ns), 7),
        ]);
        let report = Report::decode(&bytes).expect("a report");
        let gaps = &report.vcpus[1].gaps;
        assert_eq!(gaps.len(), GAP_LOG);
        assert_eq!((gaps[0].at_ns, gaps[GAP_LOG - 1].at_ns), (10, 90));
        assert_eq!(report.longest_gap_since_ns(0), 7);
        assert_eq!(report.longest_gap_since_ns(50), 5);
        assert_eq!(report.longest_pause_since_ns(50), 1);
    }

    #[test]
    fn a_stop_by_the_host_is_told_from_other_gaps() {
        let stop = HEADER_BYTES + offset_of!(VcpuRecord, last_stop);
        let bytes = report(&[
            (HEADER_BYTES + offset_of!(VcpuRecord, stops), 1),
            (stop + offset_of!(GapRecord, at_ns), 90),
            (stop + offset_of!(GapRecord, tsc_ns), 5),
        ]);
        let report = Report::decode(&bytes).expect("a report");
        assert_eq!(report.last_stop_since_ns(50), Some(5));
        assert_eq!(report.last_stop_since_ns(90), None);
        assert_eq!(report.vcpus[1].last_stop, None);
    }

    #[test]
    fn what_is_no_report_is_refused() {
        assert_eq!(Report::decode(&[0; 10]), Err(ReportError::Short(10)));
        assert_eq!(
            Report::decode(&vec![0; REPORT_BYTES]),
            Err(ReportError::Absent)
        );
        for (offset, value) in [
            (offset_of!(Header, version), VERSION + 1),
            (offset_of!(Header, vcpus), 0),
            (offset_of!(Header, vcpus), u64::MAX),
            (offset_of!(Header, state), 9),
            (HEADER_BYTES + offset_of!(VcpuRecord, bad_kind), 9),
        ] {
            assert!(Report::decode(&report(&[(offset, value)])).is_err());
        }
        let odd = [(HEADER_BYTES + offset_of!(VcpuRecord, gap_count), u64::MAX)];
        assert!(Report::decode(&report(&odd)).is_ok());
        let failed = [
            (offset_of!(Header, state), STATE_FAILED),
            (offset_of!(Header, message_len), u64::MAX),
        ];
        assert!(matches!(
            Report::decode(&report(&failed)),
            Ok(Report {
                state: State::Failed(_),
                ..
            })
        ));
    }
}
