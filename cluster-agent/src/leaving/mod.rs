//! A host that leaves the cluster for good: it is emptied like one in maintenance, then takes
//! itself off the list, and its agent ends.
//!
//! The wish lies in `policy.toml`, so that it survives the leader and the host's own agent. The
//! list is left first and the wish is forgotten last: whatever is interrupted goes on when the
//! agent starts again.

pub mod cli;
mod forget;
pub mod routes;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use shared_storage::StoreError;
use shared_storage::lease::HeldLease;
use tracing::{info, warn};

use crate::driver::lead::release;
use crate::guests::Host;
use crate::policy::Policy;

/// How often taking oneself off the list is tried while the datastore does not answer.
const ATTEMPTS_MAX: u32 = 60;
/// Pause between two tries.
const PAUSE: Duration = Duration::from_secs(1);

/// Take this host, which is empty, off the list, and end the agent. Only the last host of a
/// cluster still leads it then: `lead` is how it holds that.
pub fn leave(host: Arc<Host>, lead: Option<Option<HeldLease>>) {
    tokio::task::spawn_blocking(move || {
        if let Some(held) = lead {
            release(&host, held);
        }
        for _ in 0..ATTEMPTS_MAX {
            match take_off(&host) {
                Ok(()) => {
                    info!("has left the cluster; its agent ends");
                    // As if the operator had stopped it: what it holds is given back in order.
                    if let Err(error) = kill_process(getpid(), Signal::TERM) {
                        warn!(%error, "cannot end by itself; stop this agent");
                    }
                    return;
                }
                Err(error) => warn!(%error, "cannot leave the cluster yet"),
            }
            thread::sleep(PAUSE);
        }
        warn!("gives up leaving the cluster; it is tried again when this agent starts anew");
    });
}

fn take_off(host: &Host) -> Result<(), StoreError> {
    let name = host.keeper.host().name();
    // Its certificate is of no use to anybody any more.
    remove(&host.identity)?;
    host.store.remove_host(name)?;
    Policy::change(&host.store, |policy| {
        policy.leaving.remove(name);
        policy.maintenance.remove(name);
        Ok(())
    })
}

fn remove(dir: &std::path::Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", dir)(error))
        }
        _ => Ok(()),
    }
}
