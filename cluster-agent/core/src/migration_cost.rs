//! What a live migration of a guest will come to, from what was measured of the guest's
//! writes and of the migrations before.
//!
//! The policy that steers migrations is played against the measurements, as a dry run does;
//! what is not measured yet is assumed, and told so.

use core::fmt;

use serde::{Deserialize, Serialize};
use vmm_core::control::{LOOKS, MemorySample};
use vmm_core::converge::Goal;
use vmm_core::forecast::{Dirtied, Measured, forecast};

use crate::demand::{Smoothed, Smoothing};
use crate::messages::MoveOutcome;

/// What a link is taken to carry until a migration has shown it.
pub const LINK_MIB_S: u64 = 1000;
/// Before and after memory flows, until a migration has shown it.
const SETUP_US: u64 = 100_000;
/// Standing still without any memory to send, until a migration has shown it.
const FIXED_US: u64 = 5_000;
/// A round without any memory.
const EMPTY_ROUND_US: u64 = 500;
/// A migration that sent less says nothing about the link.
const TELLING_MIB: u64 = 16;
/// What was learnt counts so many times as much as the latest migration.
const INERTIA: u64 = 3;

/// What migrations from a host have shown of its way to others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Link {
    /// Memory that it carries per second.
    pub mib_s: Option<u64>,
    /// What migrations took besides sending.
    pub setup_us: u64,
    /// For how long guests stood still.
    pub blackout_us: u64,
}

impl Link {
    /// What is known after one more migration.
    pub fn after(known: Option<Self>, outcome: &MoveOutcome) -> Option<Self> {
        let MoveOutcome::Moved {
            total_ms,
            blackout_us,
            sent_mib,
            link_mib_s,
        } = *outcome
        else {
            return known;
        };
        let shown = (sent_mib >= TELLING_MIB && link_mib_s > 0).then_some(link_mib_s);
        let rate = shown.or(known.and_then(|link| link.mib_s));
        let sending_us = sent_mib * 1_000_000 / rate.unwrap_or(LINK_MIB_S);
        let latest = Self {
            mib_s: rate,
            setup_us: (total_ms * 1000).saturating_sub(sending_us + blackout_us),
            blackout_us,
        };
        let Some(known) = known else {
            return Some(latest);
        };
        let mean = |known: u64, latest: u64| (known * INERTIA + latest) / (INERTIA + 1);
        Some(Self {
            mib_s: rate.map(|rate| known.mib_s.map_or(rate, |known| mean(known, rate))),
            setup_us: mean(known.setup_us, latest.setup_us),
            blackout_us: mean(known.blackout_us, latest.blackout_us),
        })
    }
}

/// How a guest writes to its memory: the samples of its VMM, smoothed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Writes {
    last: Option<MemorySample>,
    at_ms: u64,
    kib: [Smoothed; LOOKS],
}

impl Writes {
    /// Takes in what the VMM says; the same sample is told again and again until the next.
    pub fn observe(&mut self, now_ms: u64, sample: MemorySample, by: &Smoothing) {
        let same = |last: MemorySample| last.dirtied == sample.dirtied;
        if self.last.is_some_and(same) {
            return;
        }
        let elapsed_ms = now_ms.saturating_sub(self.at_ms);
        let first = self.last.is_none();
        for (kib, look) in self.kib.iter_mut().zip(sample.dirtied) {
            if first {
                *kib = Smoothed::starting_at(look.bytes >> 10);
            } else {
                kib.observe(now_ms, elapsed_ms, look.bytes >> 10, by);
            }
        }
        self.last = Some(sample);
        self.at_ms = now_ms;
    }

    /// Memory that was written within so long, at each look; nothing before the first sample.
    pub fn dirtied(&self) -> Option<[Dirtied; LOOKS]> {
        let mut dirtied = self.last?.dirtied;
        for (look, kib) in dirtied.iter_mut().zip(self.kib) {
            look.bytes = kib.value() << 10;
        }
        Some(dirtied)
    }
}

/// What a live migration is predicted to come to, and what that rests on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct MigrationCost {
    /// From the order to the guest running on the target; 0: not predicted.
    pub duration_ms: u64,
    /// For how long the guest stands still; 0: not predicted.
    pub blackout_us: u64,
    /// What the link carried when it was last used; `None`: 1000 MiB/s are assumed.
    pub link_mib_s: Option<u64>,
    /// How fast the guest was seen to write to memory; `None`: no writing is assumed.
    pub dirty_mib_s: Option<u64>,
}

impl MigrationCost {
    /// Plays a migration.
    pub fn predict(touched_mib: u64, writes: &Writes, link: Option<Link>) -> Self {
        let mib_s = link.and_then(|link| link.mib_s);
        let bytes_per_ms = ((mib_s.unwrap_or(LINK_MIB_S).max(1)) << 20) / 1000;
        let touched_bytes = touched_mib << 20;
        let dirtied = writes.dirtied();
        let rate = |looks: [Dirtied; LOOKS]| {
            (looks[0].bytes >> 10).saturating_mul(1_000_000) / looks[0].after_us.max(1) / 1024
        };
        let measured = Measured {
            setup_us: link.map_or(SETUP_US, |link| link.setup_us),
            first_bytes: touched_bytes,
            first_us: touched_bytes.saturating_mul(1000) / bytes_per_ms,
            bytes_per_ms,
            empty_round_us: EMPTY_ROUND_US,
            fixed_us: link.map_or(FIXED_US, |link| link.blackout_us),
            dirtied: dirtied.iter().flatten().copied().collect(),
        };
        // As the agents order it.
        let goal = Goal {
            accept_longer: true,
            ..Goal::default()
        };
        let told = forecast(goal, &measured, touched_bytes);
        Self {
            duration_ms: (told.total_us / 1000).max(1),
            blackout_us: told.blackout_us,
            link_mib_s: mib_s,
            dirty_mib_s: dirtied.map(rate),
        }
    }
}

impl fmt::Display for MigrationCost {
    /// `about 2.1 s of migration, 5.3 ms of it standing still (...)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = |thousandths: u64| (thousandths / 1000, thousandths % 1000 / 100);
        let (seconds, tenth) = tenths(self.duration_ms);
        write!(f, "about {seconds}.{tenth} s of migration")?;
        if self.blackout_us > 0 {
            let (ms, tenth) = tenths(self.blackout_us);
            write!(f, ", {ms}.{tenth} ms of it standing still")?;
        }
        match self.link_mib_s {
            Some(rate) => write!(f, " (measured: link {rate} MiB/s")?,
            None => write!(f, " (assumed: link {LINK_MIB_S} MiB/s")?,
        }
        match (self.dirty_mib_s, self.link_mib_s) {
            (Some(rate), Some(_)) => write!(f, ", writes {rate} MiB/s)"),
            (Some(rate), None) => write!(f, "; measured: writes {rate} MiB/s)"),
            (None, Some(_)) => write!(f, "; assumed: no writes)"),
            (None, None) => write!(f, ", no writes)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    fn sample(mib: [u64; LOOKS]) -> MemorySample {
        let after_us = [400_000, 2_000_000, 10_000_000];
        let mut sample = MemorySample::default();
        for ((look, mib), after_us) in sample.dirtied.iter_mut().zip(mib).zip(after_us) {
            *look = Dirtied {
                after_us,
                bytes: mib << 20,
            };
        }
        sample
    }

    fn writes(mib: [u64; LOOKS]) -> Writes {
        let mut writes = Writes::default();
        writes.observe(0, sample(mib), &Smoothing::default());
        writes
    }

    fn moved(sent_mib: u64, link_mib_s: u64, total_ms: u64) -> MoveOutcome {
        MoveOutcome::Moved {
            total_ms,
            blackout_us: 20_000,
            sent_mib,
            link_mib_s,
        }
    }

    #[test]
    fn writing_costs_time_and_what_is_assumed_is_said() {
        let idle = MigrationCost::predict(1000, &Writes::default(), None);
        assert_eq!((idle.link_mib_s, idle.dirty_mib_s), (None, None));
        assert!((1000..1300).contains(&idle.duration_ms), "{idle:?}");
        let text = idle.to_string();
        assert!(
            text.ends_with("(assumed: link 1000 MiB/s, no writes)"),
            "{text}"
        );
        let busy = MigrationCost::predict(1000, &writes([200, 400, 500]), None);
        assert_eq!(busy.dirty_mib_s, Some(500));
        assert!(busy.duration_ms > idle.duration_ms + 300, "{busy:?}");
        let slow = Link::after(None, &moved(500, 100, 5200));
        let slow = MigrationCost::predict(1000, &writes([0, 0, 0]), slow);
        assert!((10_000..11_000).contains(&slow.duration_ms), "{slow:?}");
        let text = slow.to_string();
        assert!(
            text.ends_with("(measured: link 100 MiB/s, writes 0 MiB/s)"),
            "{text}"
        );
    }

    #[test]
    fn migrations_teach_and_small_ones_say_nothing_of_the_link() {
        let small = Link::after(None, &moved(3, 7, 150)).expect("it moved");
        assert_eq!(small.mib_s, None);
        assert_eq!(small.setup_us, 127_000);
        let first = Link::after(Some(small), &moved(800, 400, 2200)).expect("it moved");
        assert_eq!(first.mib_s, Some(400));
        let second = Link::after(Some(first), &moved(800, 800, 1200)).expect("it moved");
        assert_eq!(second.mib_s, Some(500));
        let failed = MoveOutcome::Failed { why: "no".into() };
        assert_eq!(Link::after(Some(second), &failed), Some(second));
    }

    #[test]
    fn a_spike_of_writing_is_held_off() {
        let by = Smoothing::default();
        let mut writes = writes([10, 20, 30]);
        writes.observe(10_000, sample([500, 600, 700]), &by);
        let after = |writes: &Writes| writes.dirtied().expect("samples")[0].bytes >> 20;
        assert_eq!(after(&writes), 10);
        for at in 2..12 {
            writes.observe(at * 10_000, sample([500 + at, 600, 700]), &by);
        }
        assert!(after(&writes) > 300, "{writes:?}");
    }
}
