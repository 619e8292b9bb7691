//! The five numbers of the lease protocol, and the inequality that makes them safe.
//!
//! A holder acts until `R` after it *sent* its last acknowledged heartbeat, needs up to `S`
//! to stop, and a write it issued before may live for another `D`. A contender waits `W`.
//! Clocks of different hosts run apart by at most `rho` each way. Nothing of the holder may
//! be left when the contender begins:
//!
//! ```text
//! W * (1 - rho)  >=  R * (1 + rho) + S + D
//! ```
//!
//! With fencing at the target a late write lands nowhere, so `D` is 0 and a shorter `W`
//! follows from the others.

use serde::{Deserialize, Serialize};

const MILLION: u64 = 1_000_000;
/// No setting may be longer than this, so that products stay far from overflow.
const LONGEST_MS: u32 = 3_600_000;
/// How many heartbeats in a row may be lost before the holder has to stop.
const LEAST_BEATS_PER_REACH: u32 = 3;

/// Timings of a cluster, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// How often each host rewrites its heartbeat, and reads those of others.
    pub heartbeat_interval_ms: u32,
    /// `R`: how long after sending an acknowledged heartbeat a host may act.
    pub reach_ms: u32,
    /// `W`: how long a contender watches a heartbeat stand still where it cannot fence.
    pub watch_ms: u32,
    /// `S`: the worst time a holder takes to stop its guests.
    pub stop_ms: u32,
    /// `D`: the longest life of a write that was issued before the holder stopped.
    pub in_flight_ms: u32,
    /// `rho`: how far a host's clock may run fast or slow, in millionths.
    pub drift_ppm: u32,
}

impl Default for Timing {
    /// A restart begins within 4 s of a power cut (W plus one reading interval and the
    /// accesses themselves), within 2 s where the target fences.
    fn default() -> Self {
        Self {
            heartbeat_interval_ms: 250,
            reach_ms: 1250,
            watch_ms: 3300,
            stop_ms: 200,
            in_flight_ms: 1800,
            drift_ppm: 500,
        }
    }
}

/// Why timings were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    /// Two hosts could own one guest.
    #[error(
        "watch_ms = {watch_ms} is unsafe: with these reach_ms, stop_ms, in_flight_ms and \
         drift_ppm a contender has to watch for at least {least_ms} ms"
    )]
    WatchTooShort {
        /// What was given.
        watch_ms: u32,
        /// The least that is safe.
        least_ms: u64,
    },
    /// One lost heartbeat would stop guests.
    #[error(
        "reach_ms = {reach_ms} is too short: it has to span {LEAST_BEATS_PER_REACH} heartbeats \
         of {interval_ms} ms"
    )]
    ReachTooShort {
        /// What was given.
        reach_ms: u32,
        /// The heartbeat interval.
        interval_ms: u32,
    },
    /// A number that has to be positive is not.
    #[error("{0} must not be 0")]
    Zero(&'static str),
    /// A number nobody can mean.
    #[error("{name} = {value} is out of range: at most {most}")]
    TooLarge {
        /// The setting.
        name: &'static str,
        /// What was given.
        value: u32,
        /// The most that is allowed.
        most: u32,
    },
}

impl Timing {
    /// Refuses timings under which two hosts could own one guest, or no host could keep one.
    pub fn check(&self) -> Result<(), TimingError> {
        let lengths = [
            ("heartbeat_interval_ms", self.heartbeat_interval_ms),
            ("reach_ms", self.reach_ms),
            ("watch_ms", self.watch_ms),
            ("stop_ms", self.stop_ms),
            ("in_flight_ms", self.in_flight_ms),
        ];
        for (name, value) in lengths {
            if value == 0 && name != "in_flight_ms" {
                return Err(TimingError::Zero(name));
            }
            if value > LONGEST_MS {
                return Err(TimingError::TooLarge {
                    name,
                    value,
                    most: LONGEST_MS,
                });
            }
        }
        if self.drift_ppm >= 100_000 {
            let (name, value) = ("drift_ppm", self.drift_ppm);
            return Err(TimingError::TooLarge {
                name,
                value,
                most: 99_999,
            });
        }
        if self.reach_ms < LEAST_BEATS_PER_REACH * self.heartbeat_interval_ms {
            let (reach_ms, interval_ms) = (self.reach_ms, self.heartbeat_interval_ms);
            return Err(TimingError::ReachTooShort {
                reach_ms,
                interval_ms,
            });
        }
        let least_ms = self.least_watch_us(self.in_flight_us()).div_ceil(1000);
        if u64::from(self.watch_ms) < least_ms {
            return Err(TimingError::WatchTooShort {
                watch_ms: self.watch_ms,
                least_ms,
            });
        }
        Ok(())
    }

    /// The least `W` that satisfies the inequality for this `D`, in microseconds.
    fn least_watch_us(&self, in_flight_us: u64) -> u64 {
        let drift = u64::from(self.drift_ppm);
        // Everything times a million, so that the drift stays an integer.
        let right = self.reach_us() * (MILLION + drift) + (self.stop_us() + in_flight_us) * MILLION;
        right.div_ceil(MILLION - drift)
    }

    /// How long a contender has to watch, in microseconds of its own clock.
    pub fn watch_us(&self, fenced: bool) -> u64 {
        if fenced {
            self.least_watch_us(0)
        } else {
            us(self.watch_ms)
        }
    }

    /// The heartbeat interval in microseconds.
    pub fn interval_us(&self) -> u64 {
        us(self.heartbeat_interval_ms)
    }

    /// `R` in microseconds.
    pub fn reach_us(&self) -> u64 {
        us(self.reach_ms)
    }

    /// `S` in microseconds.
    pub fn stop_us(&self) -> u64 {
        us(self.stop_ms)
    }

    /// `D` in microseconds.
    pub fn in_flight_us(&self) -> u64 {
        us(self.in_flight_ms)
    }

    /// `D` as the slowest allowed clock has to wait for it, in microseconds.
    pub fn in_flight_wait_us(&self) -> u64 {
        (self.in_flight_us() * (MILLION + u64::from(self.drift_ppm))).div_ceil(MILLION)
    }

    /// A contender whose own accesses were further apart than this was cut off itself and
    /// starts counting anew.
    pub fn own_gap_us(&self) -> u64 {
        self.reach_us() / 2
    }
}

fn us(ms: u32) -> u64 {
    u64::from(ms) * 1000
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_defaults_are_safe_and_fast() {
        let timing = Timing::default();
        timing.check().unwrap();
        let before_and_after = timing.interval_us() + 400_000;
        assert!(timing.watch_us(false) + before_and_after <= 4_000_000);
        assert!(timing.watch_us(true) + before_and_after <= 2_150_000);
        assert!(timing.watch_us(true) + timing.interval_us() <= 1_750_000);
    }

    #[test]
    fn a_short_watch_is_refused_and_the_least_is_named() {
        let timing = Timing {
            watch_ms: 3000,
            ..Timing::default()
        };
        let error = timing.check().unwrap_err();
        let TimingError::WatchTooShort { least_ms, .. } = error else {
            panic!("{error}")
        };
        Timing {
            watch_ms: least_ms as u32,
            ..timing
        }
        .check()
        .unwrap();
        Timing {
            watch_ms: least_ms as u32 - 1,
            ..timing
        }
        .check()
        .unwrap_err();
    }

    #[test]
    fn senseless_numbers_are_refused() {
        let good = Timing::default();
        let bad = [
            Timing {
                heartbeat_interval_ms: 0,
                ..good
            },
            Timing {
                reach_ms: 700,
                ..good
            },
            Timing { stop_ms: 0, ..good },
            Timing {
                watch_ms: u32::MAX,
                ..good
            },
            Timing {
                drift_ppm: 100_000,
                ..good
            },
        ];
        for timing in bad {
            timing.check().unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn the_integers_mean_the_inequality(
            reach_ms in 1..LONGEST_MS, stop_ms in 1..LONGEST_MS, in_flight_ms in 0..LONGEST_MS,
            drift_ppm in 0..100_000_u32,
        ) {
            let timing = Timing { reach_ms, stop_ms, in_flight_ms, drift_ppm, ..Timing::default() };
            let least = u128::from(timing.least_watch_us(timing.in_flight_us()));
            let drift = u128::from(drift_ppm);
            let million = u128::from(MILLION);
            let need = u128::from(timing.reach_us()) * (million + drift)
                + u128::from(timing.stop_us() + timing.in_flight_us()) * million;
            prop_assert!(least * (million - drift) >= need);
            prop_assert!((least - 1) * (million - drift) < need);
        }
    }
}
