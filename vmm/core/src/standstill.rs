//! For how long a guest will stand still whatever it does: stopping it, moving the machine's state,
//! handing over, starting. Concluded from what a migration measures while the guest runs.

use alloc::vec::Vec;

/// Times that something goes to the target and back while the guest stands still: the last
/// round with the state, and the commit.
const EXCHANGES: u64 = 2;
/// What the target measures of the state it does over and over, in peace. At the switch-over caches
/// are cold and threads asleep, and the state has a way to go: it takes so many tenths of that
/// (docs/benchmarks.md).
const COLD_TENTHS: u64 = 26;
/// The guest finds none of its memory mapped on the target: its first steps take so long.
const FIRST_STEPS_US: u64 = 300;

/// What is known of it by now; all in microseconds.
#[derive(Debug, Clone, Default)]
pub struct Standstill {
    state_us: u64,
    exchanges: Sample,
    stops: Sample,
    looks: Sample,
    commit_us: u64,
}

impl Standstill {
    /// Copying such a machine's state and pouring it in took the target so long.
    pub fn state_took(&mut self, us: u64) {
        self.state_us = us;
    }

    /// A round without memory took so long.
    pub fn exchange_took(&mut self, us: u64) {
        self.exchanges.add(us);
    }

    /// Stopping the processors took so long.
    pub fn stop_took(&mut self, us: u64) {
        self.stops.add(us);
    }

    /// Finding out what is dirty took so long.
    pub fn look_took(&mut self, us: u64) {
        self.looks.add(us);
    }

    /// Handing the lease over would have taken so long.
    pub fn commit_took(&mut self, us: u64) {
        self.commit_us = us;
    }

    /// A round without any memory.
    pub fn empty_round_us(&self) -> u64 {
        self.exchanges.typical()
    }

    /// All of it. What wavers counts as it is in the slower half: on a busy machine that is how it
    /// will be, and a single slip says nothing.
    pub fn fixed_us(&self) -> u64 {
        let exchanges = self.exchanges.slow().saturating_mul(EXCHANGES);
        (self.state_us.saturating_mul(COLD_TENTHS) / 10)
            .saturating_add(self.stops.slow())
            .saturating_add(self.looks.slow())
            .saturating_add(exchanges)
            .saturating_add(self.commit_us)
            .saturating_add(FIRST_STEPS_US)
    }
}

/// The same thing measured again and again, in order.
#[derive(Debug, Clone, Default)]
struct Sample(Vec<u64>);

impl Sample {
    fn add(&mut self, us: u64) {
        let at = self.0.partition_point(|other| *other < us);
        self.0.insert(at, us);
    }

    /// The median.
    fn typical(&self) -> u64 {
        self.0.get(self.0.len() / 2).copied().unwrap_or(0)
    }

    /// The middle of the upper half.
    fn slow(&self) -> u64 {
        self.0.get(self.0.len() * 3 / 4).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::converge::{Converge, Goal};

    /// What things take in the end, and how far from it each measurement was, in per cent.
    #[derive(Debug, Clone)]
    struct Host {
        state_us: u64,
        exchange_us: u64,
        stop_us: u64,
        look_us: u64,
        commit_us: u64,
        wavers: Vec<u64>,
    }

    impl Host {
        fn any() -> impl Strategy<Value = Host> {
            let times = (
                50u64..5_000,
                20u64..50_000,
                10u64..5_000,
                1u64..5_000,
                0u64..50_000,
            );
            let wavers = prop::collection::vec(87u64..=130, 4..40);
            (times, wavers).prop_map(|(times, wavers)| {
                let (state_us, exchange_us, stop_us, look_us, commit_us) = times;
                Host {
                    state_us,
                    exchange_us,
                    stop_us,
                    look_us,
                    commit_us,
                    wavers,
                }
            })
        }

        fn measured(&self) -> Standstill {
            let mut standstill = Standstill::default();
            standstill.state_took(self.state_us);
            standstill.commit_took(self.commit_us);
            for percent in &self.wavers {
                standstill.exchange_took(self.exchange_us * percent / 100);
                standstill.stop_took(self.stop_us * percent / 100);
                standstill.look_took(self.look_us * percent / 100);
            }
            standstill
        }

        fn takes_us(&self) -> u64 {
            self.state_us * COLD_TENTHS / 10
                + self.exchange_us * EXCHANGES
                + self.stop_us
                + self.look_us
                + self.commit_us
                + FIRST_STEPS_US
        }
    }

    proptest! {
        #[test]
        fn it_never_predicts_less_than_it_takes_by_more_than_a_fifth(host in Host::any()) {
            let mut policy = Converge::new(Goal::default(), None);
            policy.set_fixed(host.measured().fixed_us());
            let predicted_us = policy.predict_us(0);
            prop_assert!(predicted_us * 120 / 100 >= host.takes_us(), "{predicted_us}");
        }

        #[test]
        fn slips_in_up_to_a_quarter_of_the_measurements_change_nothing(
            host in Host::any(), slip_us in 20_000u64..1_000_000,
        ) {
            let mut with_slips = host.measured();
            for _ in 0..(host.wavers.len() - 1) / 3 {
                with_slips.stop_took(slip_us);
            }
            prop_assert!(with_slips.fixed_us() < host.takes_us() * 130 / 100 + 1);
        }

        #[test]
        fn what_is_slow_half_of_the_time_is_counted(host in Host::any(), slow_us in 20_000u64..1_000_000) {
            let mut often_slow = host.measured();
            for _ in &host.wavers {
                often_slow.stop_took(slow_us);
            }
            prop_assert!(often_slow.fixed_us() >= slow_us);
        }
    }

    #[test]
    fn little_that_is_known_counts_as_it_is() {
        let mut standstill = Standstill::default();
        assert_eq!(standstill.fixed_us(), FIRST_STEPS_US);
        standstill.stop_took(100);
        assert_eq!(standstill.fixed_us(), FIRST_STEPS_US + 100);
        standstill.exchange_took(7);
        assert_eq!(standstill.empty_round_us(), 7);
        standstill.state_took(u64::MAX);
        standstill.exchange_took(u64::MAX);
        assert_eq!(standstill.fixed_us(), u64::MAX);
    }
}
