//! Measures for [`Standstill`] what it takes to move the guest besides memory, without stopping it.

use std::time::Instant;

use vmm_core::standstill::Standstill;

use super::MigrationError;
use super::session::Session;
use super::source::SourceGuest;

/// Rounds without memory.
const EMPTY_ROUNDS: u32 = 5;
/// Stops that are tried at a time.
const STOPS: u32 = 3;

/// Ask the target, before the first round: its part of moving the state, and how far away it is.
pub fn measure_target(
    standstill: &mut Standstill,
    session: &mut Session<'_>,
) -> Result<(), MigrationError> {
    standstill.state_took(session.accept.state_us);
    for _ in 0..EMPTY_ROUNDS {
        let began = Instant::now();
        session.send_round(&[], None, true)?;
        session.hear_round_done()?;
        standstill.exchange_took(micros_since(began));
    }
    Ok(())
}

/// Interrupt the processors for a moment, if that says anything now, and hear how long the commit
/// would take.
pub fn measure_source(standstill: &mut Standstill, driver: &mut dyn SourceGuest) {
    if let Some(took) = driver.commit_takes() {
        standstill.commit_took(took.as_micros() as u64);
    }
    for _ in 0..STOPS {
        if let Some(took) = driver.stop_takes() {
            standstill.stop_took(took.as_micros() as u64);
        }
    }
}

/// For how long that has been.
pub fn micros_since(began: Instant) -> u64 {
    began.elapsed().as_micros().try_into().unwrap_or(u64::MAX)
}
