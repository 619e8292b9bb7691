//! Has the datastore swept now and then, on a thread of its own that may hang with it. The host that
//! leads does it; were there two for a moment, no harm would be done.

use std::io;
use std::thread;
use std::time::Duration;

use shared_storage::{Datastore, StoreError};
use tracing::{info, warn};

/// How soon after the agent's start, ...
const FIRST: Duration = Duration::from_mins(1);
/// ... and how often after that.
const EVERY: Duration = Duration::from_hours(1);

/// Begin, as the host `me`. The thread ends with the process.
pub fn start(store: Datastore, me: String) -> io::Result<()> {
    let run = move || {
        thread::sleep(FIRST);
        loop {
            match sweep(&store, &me) {
                Ok(0) => {}
                Ok(swept) => info!(swept, "removed what crashes had left on the datastore"),
                Err(error) => warn!(%error, "cannot sweep the datastore"),
            }
            thread::sleep(EVERY);
        }
    };
    thread::Builder::new().name("sweeper".into()).spawn(run)?;
    Ok(())
}

fn sweep(store: &Datastore, me: &str) -> Result<usize, StoreError> {
    let leader = store.leader_lease().last()?.and_then(|last| last.holder);
    if leader.is_none_or(|leader| leader.host != me) {
        return Ok(0);
    }
    Ok(store.sweep()?.len())
}
