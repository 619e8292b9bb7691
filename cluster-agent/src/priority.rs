//! The agent goes before the guests: a host whose processors its guests have all to themselves must
//! still beat, or it would be given up for the very load that it carries.

use std::io;

use rustix::process::{getpriority_process, setpriority_process};
use tracing::warn;

/// Niceness of the agent's threads; see sched(7).
const AGENT: i32 = -10;
/// Niceness of a guest's VMM.
const GUEST: i32 = 0;

/// Put the calling thread, and all that it will start, before the guests. Without the right to,
/// the agent works like any other process.
pub fn before_guests() {
    if let Err(error) = setpriority_process(None, AGENT) {
        warn!(%error, "cannot go before the guests; grant CAP_SYS_NICE");
    }
}

/// Do `start` at a guest's priority, which what it starts inherits. Takes a thread of its own, as
/// priority belongs to threads.
pub fn as_a_guest<T: Send>(start: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let work = || {
        if getpriority_process(None)? < GUEST {
            setpriority_process(None, GUEST)?;
        }
        start()
    };
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().spawn_scoped(scope, work)?;
        worker
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the starting thread died")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_does_not_inherit_the_agents_priority() {
        let guests = std::thread::spawn(|| {
            before_guests();
            as_a_guest(|| Ok(getpriority_process(None)?)).unwrap()
        });
        assert_eq!(guests.join().unwrap(), GUEST);
    }
}
