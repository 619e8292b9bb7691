//! For how long the guest will stand still whatever it does: stopping it, moving the machine's
//! state, handing over. Measured without stopping it.

use std::time::{Duration, Instant};

use super::MigrationError;
use super::session::Session;
use super::source::SourceGuest;

/// Rounds without memory, of which the fastest counts.
const EMPTY_ROUNDS: u32 = 3;
/// Times that something goes to the target and back while the guest stands still: the last
/// round with the state, and the commit.
const EXCHANGES: u64 = 2;
/// What the target measures of the state it does over and over, in peace. At the switch-over caches
/// are cold and threads asleep: it takes so many tenths of that (docs/benchmarks.md).
const COLD_TENTHS: u64 = 16;
/// The guest finds none of its memory mapped on the target: its first steps take so long.
const FIRST_STEPS_US: u64 = 250;

/// What is known of it by now.
#[derive(Debug, Default)]
pub struct Standstill {
    state_us: u64,
    empty_round_us: u64,
    /// How long stopping would have taken, in order.
    stops: Vec<Duration>,
}

impl Standstill {
    /// Ask the target, before the first round: its part of moving the state, and how far away it is.
    pub fn measure_target(&mut self, session: &mut Session<'_>) -> Result<(), MigrationError> {
        self.state_us = session.accept.state_us;
        let mut times = Vec::new();
        for _ in 0..EMPTY_ROUNDS {
            let began = Instant::now();
            session.send_round(&[], None, true)?;
            session.hear_round_done()?;
            times.push(began.elapsed().as_micros() as u64);
        }
        self.empty_round_us = times.into_iter().min().unwrap_or(0);
        Ok(())
    }

    /// Interrupt the processors for a moment, if that says anything now.
    pub fn measure_stop(&mut self, driver: &dyn SourceGuest) {
        if let Some(took) = driver.stop_takes() {
            let at = self.stops.partition_point(|other| *other < took);
            self.stops.insert(at, took);
        }
    }

    /// A round without any memory, in microseconds.
    pub fn empty_round_us(&self) -> u64 {
        self.empty_round_us
    }

    /// All of it, in microseconds; of the stops the median.
    pub fn fixed_us(&self) -> u64 {
        let stop = self.stops.get(self.stops.len() / 2).copied();
        stop.unwrap_or_default().as_micros() as u64
            + self.state_us * COLD_TENTHS / 10
            + FIRST_STEPS_US
            + EXCHANGES * self.empty_round_us
    }
}
