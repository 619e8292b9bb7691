//! Waiting for a condition, never for a time.

use std::thread;
use std::time::{Duration, Instant};

use crate::{LabError, Result};

/// How long something that normally takes seconds may take: emulated hosts share few cores with
/// whatever else the machine does.
pub const PATIENCE: Duration = Duration::from_mins(2);
/// How often a condition is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Waits until `look` gives something, for [`PATIENCE`] at most.
pub fn eventually<T>(what: impl Into<String>, look: impl FnMut() -> Option<T>) -> Result<T> {
    eventually_within(PATIENCE, what, look)
}

/// Waits until `look` gives something, for `limit` at most.
pub fn eventually_within<T>(
    limit: Duration,
    what: impl Into<String>,
    mut look: impl FnMut() -> Option<T>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(seen) = look() {
            return Ok(seen);
        }
        if begun.elapsed() >= limit {
            return Err(LabError::TooLate {
                what: what.into(),
                limit,
            });
        }
        thread::sleep(LOOK_AGAIN);
    }
}
