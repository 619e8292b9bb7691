//! Getting the lease: as soon as that is allowed, or before all others.

use std::process::ExitCode;
use std::thread;

use super::super::CliError;
use super::{PATIENCE, POLL, Player, keeper, say};
use crate::datastore::Datastore;
use crate::error::StoreError;
use crate::guest_dir::GuestDir;
use crate::keeper::Keeper;
use crate::lease::HeldLease;
use crate::watcher::Watcher;

/// Adopts what is ours, claims what is free, and watches who holds it until it is silent.
pub(super) fn claim_when_allowed(
    store: &Datastore,
    keeper: &Keeper,
    guest: &GuestDir,
) -> Result<HeldLease, StoreError> {
    let mut watcher = Watcher::new(store, keeper);
    let mut seen = guest.lease().look()?;
    loop {
        let holder = seen.last.as_ref().and_then(|last| last.holder.as_ref());
        if holder.is_some_and(|holder| holder.same_boot(&keeper.holder())) {
            return HeldLease::adopt(keeper, guest.lease(), guest.fence()?, PATIENCE);
        }
        if let Some(holder) = holder {
            watcher.watch(&holder.host)?;
        }
        let fence = guest.fence()?;
        match HeldLease::claim(
            keeper,
            guest.lease(),
            &seen,
            Some(&watcher),
            fence,
            PATIENCE,
        ) {
            Err(StoreError::Held { .. } | StoreError::Refused { .. }) => thread::sleep(POLL),
            claimed => return claimed,
        }
        // The time of the first sight counts as long as nothing changes.
        let now = guest.lease().look()?;
        if now.last != seen.last {
            seen = now;
        }
    }
}

/// Claims and releases until the lease has seen enough epochs.
pub(super) fn race(store: &Datastore, player: &Player, epochs: u64) -> Result<ExitCode, CliError> {
    let keeper = keeper(store, player)?;
    let guest = store.guest(&player.guest)?;
    loop {
        let seen = guest.lease().look()?;
        if seen.last.as_ref().is_some_and(|last| last.epoch >= epochs) {
            return Ok(ExitCode::SUCCESS);
        }
        match HeldLease::claim(&keeper, guest.lease(), &seen, None, None, PATIENCE) {
            Ok(held) => {
                say(&format!(
                    "won {}",
                    held.record().map_or(0, |record| record.epoch)
                ));
                held.release(PATIENCE)?;
            }
            // Another has it, or was faster.
            Err(StoreError::Held { .. } | StoreError::Refused { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
