//! A guest that is off, and stays so while something is done to what it consists of.

use std::time::Duration;

use cluster_core::model::Desired;
use hyper::StatusCode;
use shared_storage::lease::HeldLease;
use shared_storage::{GuestDir, StoreError};

use super::answer::Refused;
use crate::guest_file::GuestFile;
use crate::guests::Host;

/// One file operation of the lease may take so long.
const STORAGE_LIMIT: Duration = Duration::from_secs(10);

/// The lease of a guest that is off: nobody starts it as long as this is held. Refused if the
/// guest shall run, or somebody holds it. `why`: what speaks against doing it to a guest that
/// runs.
pub(super) fn hold(host: &Host, dir: &GuestDir, why: &str) -> Result<HeldLease, Refused> {
    let refused = |does: &str| {
        let guest = dir.name();
        let words = format!("{guest} {does}{why}; stop it first: godwit stop {guest}");
        Refused(StatusCode::CONFLICT, words)
    };
    // One whose spec cannot be read is started by nobody.
    let spec = dir.spec::<GuestFile>();
    if spec.is_ok_and(|read| read.spec.desired == Desired::Running) {
        return Err(refused("shall run"));
    }
    let lease = dir.lease();
    let seen = lease.look()?;
    let claimed = HeldLease::claim(&host.keeper, lease, &seen, None, None, STORAGE_LIMIT);
    claimed.map_err(|error| match error {
        StoreError::Held { .. } | StoreError::Refused { .. } => refused("is not off yet"),
        other => other.into(),
    })
}

/// Let others have it again.
pub(super) fn let_go(lease: &HeldLease, guest: &str) {
    if let Err(error) = lease.release(STORAGE_LIMIT) {
        tracing::warn!(guest, %error, "cannot release its lease");
    }
}
