//! What ends a migration for all its threads, up to its commit: an operator's cancel, a deadline,
//! or one of its connections that is lost.
//!
//! ```text
//!   open ──► committed                  no way back: nobody ends it any more
//!     └────► cancelled, late, broken    every wait is over
//! ```
//!
//! Connections are first shut for reading, which leaves a moment to tell the other side, and
//! then altogether.

use std::net::{Shutdown, TcpStream};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::MigrationError;

/// So long a connection of a migration that was ended can still be written to.
const FAREWELL: Duration = Duration::from_millis(20);

/// The way out of a migration.
#[derive(Debug, Default)]
pub struct Lifeline {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    end: Option<End>,
    finished: bool,
    deadline: Option<Instant>,
    sockets: Vec<TcpStream>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Cancelled,
    Late,
    Broken,
    Committed,
}

impl Lifeline {
    /// Give up, unless it is too late for that.
    pub fn cancel(&self) {
        self.end(&mut self.lock(), End::Cancelled);
    }

    /// A thread of the migration has failed, and knows why: let the others not go on.
    pub fn break_off(&self) {
        self.end(&mut self.lock(), End::Broken);
    }

    /// An error once the migration has to end.
    pub fn check(&self) -> Result<(), MigrationError> {
        match self.lock().end {
            Some(End::Cancelled) => Err(MigrationError::Cancelled),
            Some(End::Late) => Err(MigrationError::TooSlow),
            Some(End::Broken) => Err(MigrationError::Here("a part of it has failed".to_owned())),
            Some(End::Committed) | None => Ok(()),
        }
    }

    /// The reason why `error` came up: an end from outside looks like a lost connection.
    pub fn blame(&self, error: MigrationError) -> MigrationError {
        match self.lock().end {
            Some(End::Cancelled) => MigrationError::Cancelled,
            Some(End::Late) => MigrationError::TooSlow,
            Some(End::Broken | End::Committed) | None => error,
        }
    }

    /// Shut `socket` when the migration has to end.
    pub fn hold(&self, socket: &TcpStream) -> std::io::Result<()> {
        let socket = socket.try_clone()?;
        let mut inner = self.lock();
        if inner.end.is_some() {
            socket.shutdown(Shutdown::Both)?;
        }
        inner.sockets.push(socket);
        Ok(())
    }

    /// Wait for `time`, or for the end.
    pub fn sleep(&self, time: Duration) -> Result<(), MigrationError> {
        if !time.is_zero() {
            let waited = self
                .changed
                .wait_timeout_while(self.lock(), time, |inner| inner.end.is_none());
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
        self.check()
    }

    /// End it when it has not got to its commit in `time`.
    pub fn limit(&self, time: Duration) {
        self.lock().deadline = Some(Instant::now() + time);
        self.changed.notify_all();
    }

    /// From now on nobody ends it from outside; an error if somebody has.
    pub fn commit(&self) -> Result<(), MigrationError> {
        let mut inner = self.lock();
        if inner.end.is_none() {
            inner.end = Some(End::Committed);
            inner.sockets.clear();
        }
        drop(inner);
        self.changed.notify_all();
        self.check()
    }

    /// Nobody waits for anything any more.
    pub fn finish(&self) {
        let mut inner = self.lock();
        inner.finished = true;
        inner.sockets.clear();
        drop(inner);
        self.changed.notify_all();
    }

    /// Watch over the deadline and the farewell, until it is finished.
    pub fn guard(&self) {
        let mut inner = self.lock();
        while !inner.finished {
            let now = Instant::now();
            match inner.deadline {
                Some(deadline) if deadline <= now => {
                    inner.deadline = None;
                    match inner.end {
                        None => self.end(&mut inner, End::Late),
                        Some(End::Committed) => {}
                        Some(End::Cancelled | End::Late | End::Broken) => {
                            inner.shut(Shutdown::Both);
                        }
                    }
                }
                Some(deadline) => {
                    let waited = self.changed.wait_timeout(inner, deadline - now);
                    inner = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                None => {
                    let waited = self.changed.wait(inner);
                    inner = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn end(&self, inner: &mut Inner, end: End) {
        if inner.end.is_some() {
            return;
        }
        inner.end = Some(end);
        inner.shut(Shutdown::Read);
        inner.deadline = Some(Instant::now() + FAREWELL);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn shut(&self, how: Shutdown) {
        for socket in &self.sockets {
            // The other side may have closed it.
            let _ = socket.shutdown(how);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::thread;

    use super::*;

    /// Far above anything that should happen here.
    const LONG: Duration = Duration::from_mins(2);

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn a_cancel_wakes_whoever_reads_and_whoever_sleeps() {
        let lifeline = Arc::new(Lifeline::default());
        let (mut ours, _theirs) = pair();
        lifeline.hold(&ours).unwrap();
        let sleeping = thread::spawn({
            let lifeline = lifeline.clone();
            move || lifeline.sleep(LONG)
        });
        let reading = thread::spawn(move || ours.read(&mut [0]));
        lifeline.cancel();
        assert_eq!(reading.join().unwrap().unwrap(), 0);
        let slept = sleeping.join().unwrap();
        assert!(matches!(slept, Err(MigrationError::Cancelled)), "{slept:?}");
        lifeline.commit().unwrap_err();
        // A connection that is made too late ends at once.
        let (mut late, _theirs) = pair();
        lifeline.hold(&late).unwrap();
        assert_eq!(late.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_part_that_fails_ends_the_waits_of_the_others_and_is_what_is_told() {
        let lifeline = Lifeline::default();
        thread::scope(|scope| {
            let sleeping = scope.spawn(|| lifeline.sleep(LONG));
            lifeline.break_off();
            sleeping.join().unwrap().unwrap_err();
        });
        // It came first.
        lifeline.cancel();
        let blamed = lifeline.blame(MigrationError::Here("lost".to_owned()));
        assert_eq!(blamed.to_string(), "lost");
        lifeline.commit().unwrap_err();
    }

    #[test]
    fn a_deadline_ends_it_and_a_commit_comes_before() {
        let lifeline = Lifeline::default();
        let (mut ours, _theirs) = pair();
        lifeline.hold(&ours).unwrap();
        lifeline.limit(Duration::from_millis(1));
        thread::scope(|scope| {
            scope.spawn(|| lifeline.guard());
            let slept = lifeline.sleep(LONG);
            assert!(matches!(slept, Err(MigrationError::TooSlow)), "{slept:?}");
            // What is written meanwhile arrives, and in the end nothing does.
            while ours.write(&[0]).is_ok() {}
            lifeline.finish();
        });
        let blamed = lifeline.blame(MigrationError::Here("lost".to_owned()));
        assert!(matches!(blamed, MigrationError::TooSlow), "{blamed:?}");
        let late = lifeline.commit();
        assert!(matches!(late, Err(MigrationError::TooSlow)), "{late:?}");
        let lifeline = Lifeline::default();
        lifeline.limit(Duration::ZERO);
        lifeline.commit().unwrap();
        lifeline.cancel();
        lifeline.finish();
        lifeline.guard();
        lifeline.check().unwrap();
    }
}
