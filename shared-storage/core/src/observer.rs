//! Watching another host's heartbeat.
//!
//! ```text
//!              changed record, or a gap in our own accesses
//!            ┌──────────────────────────────────────────────┐
//!            ▼                                              │
//!   first read ──► since = when that read was answered ──► counting
//! ```
//!
//! What may be counted is the time from the *answer* of the first read that gave the present
//! record to the *question* of the last one: the record certainly lay there unchanged that
//! long. A gap in our own accesses (an outage, a freeze, a jump of our clock) starts the
//! count anew, so that an outage everybody sees condemns nobody.

use crate::record::{HeartbeatRecord, Holder};
use crate::timing::Timing;

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// A heartbeat.
    Beat(HeartbeatRecord),
    /// Bytes that are none, by their checksum. A host that lives replaces them; one that died
    /// in the midst of writing leaves them, and must not be immortal for that.
    Damaged(u32),
}

/// What a contender knows about one host's heartbeat.
#[derive(Debug, Clone, Default)]
pub struct Observer {
    sight: Option<Sight>,
    /// The last whole record.
    record: Option<HeartbeatRecord>,
    /// Answer to the first read of the present run of equal records.
    since_us: u64,
    /// Question and answer of the last read that counted.
    last_issued_us: u64,
    last_answered_us: u64,
    /// Our own term at that time; another one means that we were cut off in between.
    own_term: u32,
    counting: bool,
}

/// What a heartbeat says about a holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was read yet, or too long ago.
    Unknown,
    /// Unchanged for this long, which is not long enough.
    Watching {
        /// Microseconds counted so far.
        silent_us: u64,
    },
    /// The host has rebooted since it got the lease: that holder is gone.
    Rebooted,
    /// Unchanged for as long as was asked.
    Silent {
        /// Microseconds counted.
        silent_us: u64,
    },
}

impl Observer {
    /// A read of the heartbeat was answered.
    ///
    /// `own_term` is the term of our own hold, none while it has run out: a contender that
    /// cannot write is cut off itself, however well it reads.
    pub fn read(
        &mut self,
        issued_us: u64,
        answered_us: u64,
        sight: &Sight,
        own_term: Option<u32>,
        timing: &Timing,
    ) {
        let gap_us = timing.own_gap_us();
        let steady = self.counting
            && own_term == Some(self.own_term)
            && answered_us.saturating_sub(issued_us) <= gap_us
            && issued_us.saturating_sub(self.last_answered_us) <= gap_us
            && issued_us >= self.last_answered_us;
        if !steady || self.sight.as_ref() != Some(sight) {
            self.since_us = answered_us;
        }
        if let Sight::Beat(record) = sight {
            self.record = Some(record.clone());
        }
        self.sight = Some(sight.clone());
        self.last_issued_us = issued_us;
        self.last_answered_us = answered_us;
        self.own_term = own_term.unwrap_or_default();
        self.counting = own_term.is_some();
    }

    /// A read failed, or its answer did not come in time: what was counted is void.
    pub fn failed(&mut self) {
        self.counting = false;
    }

    /// The last whole record that was read.
    pub fn record(&self) -> Option<&HeartbeatRecord> {
        self.record.as_ref()
    }

    /// How long the record has certainly stood still, in microseconds of our own clock.
    pub fn silent_us(&self) -> u64 {
        if self.counting {
            self.last_issued_us.saturating_sub(self.since_us)
        } else {
            0
        }
    }

    /// Whether `holder` is gone, from reads that were issued at or after `lease_read_us`, the
    /// answer to the read of the lease that names it.
    ///
    /// The order matters: a host beats before it gets a lease, so only a heartbeat read after
    /// the lease must be of the lease's boot or a later one.
    pub fn verdict(&self, holder: &Holder, lease_read_us: u64, watch_us: u64) -> Verdict {
        let Some(sight) = &self.sight else {
            return Verdict::Unknown;
        };
        if !self.counting || self.last_issued_us < lease_read_us {
            return Verdict::Unknown;
        }
        if let Sight::Beat(record) = sight
            && record.incarnation != holder.incarnation
        {
            return Verdict::Rebooted;
        }
        let silent_us = self.silent_us();
        if silent_us >= watch_us {
            Verdict::Silent { silent_us }
        } else {
            Verdict::Watching { silent_us }
        }
    }

    /// When to read again: every interval, and exactly when the watch could be complete.
    pub fn next_read_us(&self, timing: &Timing, watch_us: u64) -> u64 {
        let regular_us = self.last_issued_us.saturating_add(timing.interval_us());
        let complete_us = self.since_us.saturating_add(watch_us);
        if self.counting && complete_us > self.last_issued_us {
            regular_us.min(complete_us)
        } else {
            regular_us
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Incarnation;

    const MS: u64 = 1000;

    fn record(counter: u64) -> Sight {
        Sight::Beat(HeartbeatRecord {
            host: "a".into(),
            incarnation: Incarnation([1; 16]),
            counter,
            sent_us: counter,
            term: 1,
            flags: 0,
            writer_pid: 1,
        })
    }

    fn holder(incarnation: u8) -> Holder {
        Holder {
            host: "a".into(),
            incarnation: Incarnation([incarnation; 16]),
            term: 1,
        }
    }

    /// Reads every 250 ms of own clock, each answered after 10 ms.
    fn watch(observer: &mut Observer, from_ms: u64, to_ms: u64, counter: u64, term: Option<u32>) {
        let timing = Timing::default();
        for at_ms in (from_ms..to_ms).step_by(250) {
            observer.read(
                at_ms * MS,
                (at_ms + 10) * MS,
                &record(counter),
                term,
                &timing,
            );
        }
    }

    #[test]
    fn counts_from_the_first_answer_to_the_last_question() {
        let mut observer = Observer::default();
        assert_eq!(observer.verdict(&holder(1), 0, 1), Verdict::Unknown);
        watch(&mut observer, 0, 1001, 1, Some(1));
        let verdict = observer.verdict(&holder(1), 0, 2000 * MS);
        assert_eq!(
            verdict,
            Verdict::Watching {
                silent_us: 990 * MS
            }
        );
        let verdict = observer.verdict(&holder(1), 0, 990 * MS);
        assert_eq!(
            verdict,
            Verdict::Silent {
                silent_us: 990 * MS
            }
        );
    }

    #[test]
    fn a_change_starts_anew() {
        let mut observer = Observer::default();
        watch(&mut observer, 0, 1001, 1, Some(1));
        watch(&mut observer, 1250, 1251, 2, Some(1));
        assert_eq!(observer.silent_us(), 0);
    }

    #[test]
    fn an_outage_of_our_own_starts_anew() {
        let gap: [fn(&mut Observer); 4] = [
            Observer::failed,
            // A hole between two reads: frozen, or nobody asked.
            |_| {},
            // Reads that work while our own writes do not.
            |observer| watch(observer, 1250, 3000, 1, None),
            // Our own hold lapsed and came back.
            |observer| watch(observer, 1250, 3000, 1, Some(2)),
        ];
        for cut_off in gap {
            let mut observer = Observer::default();
            watch(&mut observer, 0, 1001, 1, Some(1));
            cut_off(&mut observer);
            watch(&mut observer, 3000, 3001, 1, Some(1));
            assert_eq!(observer.silent_us(), 0);
            watch(&mut observer, 3250, 3251, 1, Some(1));
            assert_eq!(observer.silent_us(), 240 * MS);
        }
    }

    #[test]
    fn damage_that_stays_is_silence_and_never_a_reboot() {
        let mut observer = Observer::default();
        let timing = Timing::default();
        for at_ms in (0..1001).step_by(250) {
            let (issued_us, answered_us) = (at_ms * MS, (at_ms + 10) * MS);
            observer.read(issued_us, answered_us, &Sight::Damaged(7), Some(1), &timing);
        }
        let verdict = observer.verdict(&holder(2), 0, 990 * MS);
        assert_eq!(
            verdict,
            Verdict::Silent {
                silent_us: 990 * MS
            }
        );
        observer.read(1250 * MS, 1260 * MS, &Sight::Damaged(8), Some(1), &timing);
        assert_eq!(observer.silent_us(), 0);
    }

    #[test]
    fn a_clock_that_steps_back_starts_anew() {
        let mut observer = Observer::default();
        watch(&mut observer, 0, 2000, 7, Some(1));
        assert!(observer.silent_us() > 0);
        watch(&mut observer, 500, 700, 7, Some(1));
        assert!(observer.silent_us() <= 200_000, "{}", observer.silent_us());
    }

    #[test]
    fn a_slow_answer_starts_anew() {
        let mut observer = Observer::default();
        watch(&mut observer, 0, 1001, 1, Some(1));
        observer.read(
            1250 * MS,
            3000 * MS,
            &record(1),
            Some(1),
            &Timing::default(),
        );
        assert_eq!(observer.silent_us(), 0);
    }

    #[test]
    fn another_boot_is_proof_only_when_read_after_the_lease() {
        let mut observer = Observer::default();
        watch(&mut observer, 0, 251, 1, Some(1));
        assert_eq!(observer.verdict(&holder(2), 250 * MS, 1), Verdict::Rebooted);
        assert_eq!(observer.verdict(&holder(2), 251 * MS, 1), Verdict::Unknown);
        observer.failed();
        assert_eq!(observer.verdict(&holder(2), 0, 1), Verdict::Unknown);
    }

    #[test]
    fn the_last_read_falls_on_the_end_of_the_watch() {
        let mut observer = Observer::default();
        watch(&mut observer, 0, 1001, 1, Some(1));
        let timing = Timing::default();
        assert_eq!(observer.next_read_us(&timing, 1100 * MS), 1110 * MS);
        assert_eq!(observer.next_read_us(&timing, 2000 * MS), 1250 * MS);
    }
}
