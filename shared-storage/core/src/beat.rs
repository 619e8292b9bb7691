//! Whose turn it is to write the host's heartbeat.
//!
//! All processes of a host share one page that says when the last heartbeat was begun and
//! when the agent was last seen beating. Whoever finds a turn due claims it there with one
//! compare-and-swap and writes. The agent's turns come first; a guest's process steps in
//! when the agent misses one, and keeps the pace once the agent is known to be silent.

use crate::timing::Timing;

/// Which process asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// The host's agent: writes as long as it lives.
    Agent,
    /// A guest's process: writes when the agent does not.
    Guest,
}

/// What the shared page says, in microseconds of the host's boottime clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    /// When the last heartbeat was begun, by whomever.
    pub begun_us: u64,
    /// When the agent last began one.
    pub agent_us: u64,
}

/// How many intervals of silence make guests step in for the agent.
const PATIENCE_INTERVALS: u64 = 2;

/// When `writer` should begin the next heartbeat; due when not in the future.
///
/// The first one of a boot waits until the clock, which starts with the kernel, shows that
/// writes issued by the boot before are dead: from then on others may take what it held.
pub fn turn_us(writer: Writer, pace: Pace, now_us: u64, timing: &Timing) -> u64 {
    let interval_us = timing.interval_us();
    if pace.begun_us > now_us {
        // The clock was set back, which it never is; the page must not hold us up for that.
        return now_us;
    }
    let agent_silent = now_us
        > pace
            .agent_us
            .saturating_add(PATIENCE_INTERVALS * interval_us);
    let wait_us = match writer {
        Writer::Guest if !agent_silent => PATIENCE_INTERVALS * interval_us,
        Writer::Agent | Writer::Guest => interval_us,
    };
    pace.begun_us
        .saturating_add(wait_us)
        .max(timing.in_flight_wait_us())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: u64 = 3_600_000_000;

    fn turn(writer: Writer, begun_ms: u64, agent_ms: u64, now_ms: u64) -> u64 {
        let at = |ms: u64| HOUR_US + ms * 1000;
        let pace = Pace {
            begun_us: at(begun_ms),
            agent_us: at(agent_ms),
        };
        (turn_us(writer, pace, at(now_ms), &Timing::default()) - HOUR_US) / 1000
    }

    #[test]
    fn guests_step_in_when_the_agent_is_silent_and_then_keep_the_pace() {
        assert_eq!(turn(Writer::Agent, 1000, 1000, 1100), 1250);
        assert_eq!(turn(Writer::Guest, 1000, 1000, 1100), 1500);
        assert_eq!(turn(Writer::Guest, 1500, 1000, 1600), 1750);
        assert_eq!(turn(Writer::Agent, 1500, 1000, 1600), 1750);
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_hold_up() {
        assert_eq!(turn(Writer::Agent, 5000, 5000, 1000), 1000);
    }

    #[test]
    fn a_fresh_boot_waits_until_the_writes_of_the_last_one_are_dead() {
        let timing = Timing::default();
        let first_us = turn_us(Writer::Agent, Pace::default(), 0, &timing);
        assert!(first_us >= timing.in_flight_us());
        assert!(first_us <= timing.in_flight_us() + 10_000);
    }
}
