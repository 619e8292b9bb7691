//! File operations on a storage that may be silent, for callers who cannot wait for as long as it is.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::error::StoreError;

/// The storage has to answer within this, unless told otherwise: longer than any pause of one that
/// is well.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Operations that may be under way at a time, each with a thread; no more are begun then. A host
/// that takes all guests of another over has many.
const HANGING_LIMIT: usize = 1024;

static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// One operation under way; not any more once it is dropped.
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let one_more = |taken| (taken < HANGING_LIMIT).then_some(taken + 1);
        let taken = UNDER_WAY.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        taken.ok().map(|_| Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What `operation` gives, if that is within `limit`. What is late is lost, and may still happen.
pub fn within<T: Send + 'static>(
    limit: Duration,
    act: &'static str,
    subject: &str,
    operation: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let silent = |waited: Duration| StoreError::NoAnswer {
        act,
        subject: subject.into(),
        waited_ms: waited.as_millis() as u64,
    };
    let place = Place::take().ok_or_else(|| silent(Duration::ZERO))?;
    let (tell, told) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("lease-files".into())
        .spawn(move || {
            let done = operation();
            drop(place);
            // Nobody listens any more if this was late.
            let _ = tell.send(done);
        })
        .map_err(StoreError::io("start a thread for", subject))?;
    told.recv_timeout(limit).map_err(|_| silent(limit))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_longer_than_he_wants() {
        assert_eq!(
            within(ANSWER_LIMIT, "the look", "web1", || Ok(7)).unwrap(),
            7
        );
        let (end, hangs) = mpsc::channel::<()>();
        let hang = move || {
            let _ = hangs.recv();
            Ok(())
        };
        let moment = Duration::from_millis(1);
        let error = within(moment, "the look", "web1", hang).unwrap_err();
        let said = error.to_string();
        assert_eq!(said, "the look of web1 was not answered within 1 ms");
        drop(end);
    }
}
