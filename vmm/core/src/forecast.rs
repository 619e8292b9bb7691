//! What a migration would come to: the policy is played, round by round, against what a dry
//! run has measured of the link and of the guest.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::converge::{Converge, Decision, Goal, Round};
use crate::migration::Forecast;

/// How much of memory had been dirtied so long after all of it was clean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dirtied {
    /// Since it was clean, in microseconds.
    pub after_us: u64,
    /// Memory that is not clean any more.
    pub bytes: u64,
}

/// What a dry run measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// From the request until memory can travel, in microseconds.
    pub setup_us: u64,
    /// Bytes that the first round sends.
    pub first_bytes: u64,
    /// How long the first round takes, in microseconds.
    pub first_us: u64,
    /// What the link carries, in bytes per millisecond.
    pub bytes_per_ms: u64,
    /// A round without any memory, in microseconds.
    pub empty_round_us: u64,
    /// Stopping, moving the machine's state, handing over and starting, in microseconds.
    pub fixed_us: u64,
    /// How memory was dirtied, in the order of time.
    pub dirtied: Vec<Dirtied>,
}

impl Measured {
    /// How much is dirtied in `time_us`: what was seen, in straight lines between the looks,
    /// and after the last as fast as before it.
    pub fn dirtied_bytes(&self, time_us: u64) -> u64 {
        let mut before = Dirtied {
            after_us: 0,
            bytes: 0,
        };
        let mut slope = (0, 1);
        for now in &self.dirtied {
            slope = (
                now.bytes.saturating_sub(before.bytes),
                now.after_us.saturating_sub(before.after_us).max(1),
            );
            if time_us <= now.after_us {
                break;
            }
            if core::ptr::eq(now, self.dirtied.last().unwrap_or(now)) {
                return on_line(*now, slope, time_us);
            }
            before = *now;
        }
        on_line(before, slope, time_us)
    }

    fn dirty_rate(&self) -> u64 {
        self.dirtied.last().map_or(0, |last| {
            last.bytes.saturating_mul(1_000_000) / last.after_us.max(1)
        })
    }

    fn round_us(&self, bytes: u64) -> u64 {
        let sending = bytes.saturating_mul(1000) / self.bytes_per_ms.max(1);
        self.empty_round_us.saturating_add(sending).max(1)
    }
}

fn on_line(from: Dirtied, (bytes, us): (u64, u64), time_us: u64) -> u64 {
    let since = u128::from(time_us.saturating_sub(from.after_us));
    let more = since * u128::from(bytes) / u128::from(us);
    from.bytes
        .saturating_add(more.try_into().unwrap_or(u64::MAX))
}

/// Play a migration with `goal` of a guest with so much memory.
pub fn forecast(goal: Goal, measured: &Measured, memory_bytes: u64) -> Forecast {
    let mut policy = Converge::new(goal, Some(measured.fixed_us));
    let mut round = Round {
        sent_bytes: measured.first_bytes,
        took_us: measured.first_us.max(1),
        dirty_bytes: 0,
    };
    let mut told = Forecast {
        total_us: measured.setup_us,
        blackout_us: 0,
        fixed_us: measured.fixed_us,
        sent_bytes: 0,
        rounds: 0,
        link_rate: measured.bytes_per_ms.saturating_mul(1000),
        dirty_rate: measured.dirty_rate(),
        held_back_percent: 0,
        gives_up: false,
    };
    loop {
        // Which processor dirties is not known; all are held back alike here.
        let held_back = policy.throttle_percents().first().copied().unwrap_or(0);
        let free_us = round.took_us / 100 * u64::from(100 - held_back.min(100));
        round.dirty_bytes = measured.dirtied_bytes(free_us).min(memory_bytes);
        told.rounds += 1;
        told.held_back_percent = held_back;
        told.total_us = told.total_us.saturating_add(round.took_us);
        told.sent_bytes = told.sent_bytes.saturating_add(round.sent_bytes);
        let (blackout_us, gives_up) = match policy.after(round, &[1]) {
            Decision::Continue | Decision::Throttle => {
                round.sent_bytes = round.dirty_bytes;
                round.took_us = measured.round_us(round.dirty_bytes);
                continue;
            }
            Decision::SwitchOver { predicted_us } => (predicted_us, false),
            Decision::GiveUp { predicted_us } => (predicted_us, true),
        };
        told.rounds += 1;
        told.blackout_us = blackout_us;
        told.gives_up = gives_up;
        told.total_us = told.total_us.saturating_add(blackout_us);
        told.sent_bytes = told.sent_bytes.saturating_add(round.dirty_bytes);
        return told;
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::converge::ROUNDS_MAX;

    fn measured(bytes_per_ms: u64, dirtied: Vec<Dirtied>) -> Measured {
        Measured {
            setup_us: 5_000,
            first_bytes: 1 << 30,
            first_us: (1 << 30) * 1000 / bytes_per_ms,
            bytes_per_ms,
            empty_round_us: 100,
            fixed_us: 2_000,
            dirtied,
        }
    }

    fn dirtied(after_us: u64, bytes: u64) -> Dirtied {
        Dirtied { after_us, bytes }
    }

    #[test]
    fn between_looks_it_grows_evenly_and_after_the_last_as_before_it() {
        let curve = vec![dirtied(10, 100), dirtied(20, 150)];
        let measured = measured(1 << 20, curve);
        let at = [0, 5, 10, 15, 20, 40].map(|us| measured.dirtied_bytes(us));
        assert_eq!(at, [0, 50, 100, 125, 150, 250]);
    }

    #[test]
    fn an_idle_guest_stands_still_for_the_fixed_cost() {
        let told = forecast(Goal::default(), &measured(1 << 20, vec![]), 1 << 31);
        assert!(!told.gives_up && told.held_back_percent == 0, "{told:?}");
        assert_eq!((told.rounds, told.blackout_us), (2, 2_300));
        assert_eq!(told.sent_bytes, 1 << 30);
    }

    #[test]
    fn a_guest_with_a_small_hot_set_takes_a_round_more_and_no_longer_blackout() {
        let curve = vec![dirtied(10_000, 4 << 20), dirtied(100_000, 4 << 20)];
        let told = forecast(Goal::default(), &measured(1 << 20, curve), 1 << 31);
        assert!((3..10).contains(&told.rounds), "{told:?}");
        assert!(told.blackout_us < 6_000, "{told:?}");
    }

    #[test]
    fn a_guest_that_outruns_the_link_is_said_to_be_held_back() {
        let curve = vec![dirtied(100_000, 1 << 30)];
        let told = forecast(Goal::default(), &measured(1 << 20, curve), 1 << 32);
        assert!(told.held_back_percent > 0 && !told.gives_up, "{told:?}");
    }

    proptest! {
        #[test]
        fn it_ends_and_never_promises_less_than_the_fixed_cost(
            rate in 0u64..1 << 40, first_us: u64, bytes: u64, us: u64, fixed_us in 0u64..1 << 40,
        ) {
            let mut measured = measured(1, vec![dirtied(us, bytes)]);
            (measured.bytes_per_ms, measured.first_us) = (rate, first_us);
            measured.fixed_us = fixed_us;
            let told = forecast(Goal::default(), &measured, 1 << 40);
            prop_assert!(told.rounds <= ROUNDS_MAX + 1);
            prop_assert!(told.blackout_us >= fixed_us);
        }
    }
}
