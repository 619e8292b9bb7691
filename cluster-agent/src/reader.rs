//! Reads the datastore for the driver, on a thread of its own that may hang with it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cluster_core::event::Event;
use shared_storage::clock::boottime_us;
use shared_storage::fence::DiskFence;
use shared_storage::{Datastore, StoreError};
use tokio::sync::mpsc;
use tracing::warn;

use crate::driver::Input;
use crate::inventory::{self, Reading};

/// The inventory is read once in so many readings of the leader lease.
const INVENTORY_EVERY: u32 = 4;

/// Asks the reader to read the inventory at its next turn.
#[derive(Debug, Clone, Default)]
pub struct Nudge(Arc<AtomicBool>);

impl Nudge {
    /// Something on the datastore was changed by us.
    pub fn nudge(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn taken(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

/// Start reading. Ends when the driver does.
pub fn start(store: Datastore, driver: mpsc::Sender<Input>, nudge: Nudge) -> io::Result<()> {
    let every = Duration::from_millis(u64::from(store.timing().heartbeat_interval_ms));
    let run = move || {
        let fencing = DiskFence::probe(store.root()).is_ok_and(|fence| fence.is_some());
        let mut known = None;
        for turn in 0u32.. {
            let began = Instant::now();
            let inventory_is_due = turn.is_multiple_of(INVENTORY_EVERY) | nudge.taken();
            if inventory_is_due && read_inventory(&store, fencing, &mut known, &driver).is_err() {
                return;
            }
            if read_leader(&store, &driver).is_err() {
                return;
            }
            thread::sleep(every.saturating_sub(began.elapsed()));
        }
    };
    thread::Builder::new().name("datastore".into()).spawn(run)?;
    Ok(())
}

/// The driver is gone.
struct Gone;

fn read_inventory(
    store: &Datastore,
    fencing: bool,
    known: &mut Option<Reading>,
    driver: &mpsc::Sender<Input>,
) -> Result<(), Gone> {
    match inventory::read(store, fencing) {
        Ok(reading) if known.as_ref() == Some(&reading) => Ok(()),
        Ok(reading) => {
            *known = Some(reading.clone());
            let input = Input::Inventory(Box::new(reading));
            driver.blocking_send(input).map_err(|_| Gone)
        }
        // What was read last stays in force; the lost heartbeat tells the brain.
        Err(error) => {
            unanswered(&error);
            Ok(())
        }
    }
}

fn read_leader(store: &Datastore, driver: &mpsc::Sender<Input>) -> Result<(), Gone> {
    let sent_us = boottime_us();
    match store.leader_lease().last() {
        Ok(last) => {
            let event = Event::LeaderLease(last.as_ref().into());
            driver
                .blocking_send(Input::Brain(sent_us, event))
                .map_err(|_| Gone)
        }
        Err(error) => {
            unanswered(&error);
            Ok(())
        }
    }
}

fn unanswered(error: &StoreError) {
    warn!(%error, "the datastore does not answer as it should");
}
