//! What a guest wants, from what was seen of it: smoothed, so that a plan rests on what
//! lasts and not on what flickers.
//!
//! A sample's CPU demand is what the guest's vCPUs used plus what they waited for a core
//! (run-delay), at most what it is configured with. The smoothed value follows samples as
//! an exponentially weighted mean, `value += (sample - value) * dt / (tau + dt)`, quickly up
//! and slowly down. A jump up is first *held* off: only when samples have stayed well above
//! the value for the hold time does the value rise, so that a short spike moves nothing.

use serde::{Deserialize, Serialize};

use crate::model::Resources;

/// A sample this much above the value, in thousandths, is a jump ...
const JUMP_PERMILLE: u64 = 1250;
/// ... if it is also above by this much.
const JUMP_AT_LEAST: u64 = 100;
/// After a gap as long as this what was known is forgotten.
const FORGET_MS: u64 = 600_000;
/// Binary digits behind the point.
const FRACTION_BITS: u32 = 16;

/// How fast what is believed follows what is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Smoothing {
    /// Time constant of the rise, in milliseconds.
    pub rise_ms: u64,
    /// Time constant of the fall, in milliseconds.
    pub fall_ms: u64,
    /// How long a jump has to last before it counts, in milliseconds.
    pub hold_ms: u64,
}

impl Default for Smoothing {
    fn default() -> Self {
        Self {
            rise_ms: 30_000,
            fall_ms: 300_000,
            hold_ms: 30_000,
        }
    }
}

/// What was seen of a guest over one interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// CPU used, in thousandths of a core.
    pub used_mcpu: u64,
    /// Time its vCPUs were ready and had no core, in thousandths of a core.
    pub delayed_mcpu: u64,
    /// Memory it touched lately, in MiB.
    pub active_mib: u64,
}

/// One smoothed amount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Smoothed {
    fixed: u64,
    jumped_at_ms: Option<u64>,
}

impl Smoothed {
    pub(crate) fn starting_at(sample: u64) -> Self {
        Self {
            fixed: sample << FRACTION_BITS,
            jumped_at_ms: None,
        }
    }

    pub(crate) fn value(self) -> u64 {
        // Rounded, so that a long rest reaches the sample.
        (self.fixed + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS
    }

    pub(crate) fn observe(&mut self, now_ms: u64, elapsed_ms: u64, sample: u64, by: &Smoothing) {
        let value = self.value();
        let jumped = sample > (value * JUMP_PERMILLE / 1000).max(value + JUMP_AT_LEAST);
        if jumped {
            let since = *self.jumped_at_ms.get_or_insert(now_ms);
            if now_ms.saturating_sub(since) < by.hold_ms {
                return;
            }
        } else {
            self.jumped_at_ms = None;
        }
        let sample = sample << FRACTION_BITS;
        let part = |distance: u64, tau: u64| {
            (u128::from(distance) * u128::from(elapsed_ms)
                / u128::from(tau.saturating_add(elapsed_ms).max(1))) as u64
        };
        if sample > self.fixed {
            self.fixed += part(sample - self.fixed, by.rise_ms);
        } else {
            self.fixed -= part(self.fixed - sample, by.fall_ms);
        }
    }
}

/// The smoothed demand of one guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    seen_at_ms: Option<u64>,
    mcpu: Smoothed,
    memory_mib: Smoothed,
}

impl Demand {
    /// Takes in a sample of a guest configured with `configured`; answers what it wants.
    pub fn observe(
        &mut self,
        now_ms: u64,
        sample: Sample,
        configured: Resources,
        by: &Smoothing,
    ) -> Resources {
        let mcpu = sample.used_mcpu.saturating_add(sample.delayed_mcpu);
        let mcpu = mcpu.min(configured.mcpu);
        let memory = sample.active_mib.min(configured.memory_mib);
        let elapsed = self.seen_at_ms.map(|seen| now_ms.saturating_sub(seen));
        self.seen_at_ms = Some(now_ms);
        match elapsed {
            Some(elapsed) if elapsed < FORGET_MS => {
                self.mcpu.observe(now_ms, elapsed, mcpu, by);
                self.memory_mib.observe(now_ms, elapsed, memory, by);
            }
            _ => {
                self.mcpu = Smoothed::starting_at(mcpu);
                self.memory_mib = Smoothed::starting_at(memory);
            }
        }
        self.wanted()
    }

    /// What the guest wants, as far as known.
    pub fn wanted(&self) -> Resources {
        Resources::new(self.mcpu.value(), self.memory_mib.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Resources = Resources {
        mcpu: 4000,
        memory_mib: 4096,
    };

    fn cpu(used_mcpu: u64) -> Sample {
        Sample {
            used_mcpu,
            ..Sample::default()
        }
    }

    /// Feeds a sample every five seconds; answers the last demand.
    fn feed(demand: &mut Demand, from_ms: u64, samples: &[u64]) -> u64 {
        let mut last = 0;
        for (number, sample) in (0..).zip(samples) {
            last = demand
                .observe(
                    from_ms + number * 5000,
                    cpu(*sample),
                    SIZE,
                    &Smoothing::default(),
                )
                .mcpu;
        }
        last
    }

    #[test]
    fn a_short_spike_changes_nothing() {
        let mut demand = Demand::default();
        assert_eq!(feed(&mut demand, 0, &[500; 10]), 500);
        assert_eq!(feed(&mut demand, 50_000, &[4000, 4000, 4000, 500]), 500);
    }

    #[test]
    fn what_lasts_is_believed_and_slowly_forgotten() {
        let mut demand = Demand::default();
        feed(&mut demand, 0, &[500; 10]);
        let risen = feed(&mut demand, 50_000, &[4000; 36]);
        assert!(risen > 3900, "{risen}");
        let fallen = feed(&mut demand, 230_000, &[500; 12]);
        assert!((3000..3600).contains(&fallen), "{fallen}");
        assert_eq!(feed(&mut demand, 2_000_000, &[700]), 700, "after a gap");
    }

    #[test]
    fn waiting_counts_as_wanting_up_to_what_is_configured() {
        let mut demand = Demand::default();
        let sample = Sample {
            used_mcpu: 1000,
            delayed_mcpu: 2000,
            active_mib: 9999,
        };
        let wanted = demand.observe(0, sample, SIZE, &Smoothing::default());
        assert_eq!(wanted, Resources::new(3000, 4096));
    }
}
