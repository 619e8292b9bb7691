//! Before a guest's VMM is spawned: the claim of its lease, and what the VMM is to find.

use std::path::Path;
use std::time::{Duration, Instant};

use cluster_core::messages::StartOutcome;
use shared_storage::StoreError;
use shared_storage::lease::{Held, HeldLease};

use super::CLAIM_PAUSE;
use crate::guest_file::GuestFile;
use crate::guests::Host;

/// A holder that is gone shows so within `W`; this leaves room for a slow datastore.
const CLAIM_LIMIT: Duration = Duration::from_secs(15);
/// Fencing a dead host's disks may have to wait until the NFS server has given up on that
/// host's locks and delegations, if its kernel was handed any: one NFSv4 lease, 90 s by default.
const FENCE_LIMIT: Duration = Duration::from_mins(3);

/// Take the guest's lease over from `from_epoch`; waits for its holder to be certainly gone.
pub(super) fn claim(host: &Host, guest: &str, from_epoch: u64) -> Result<HeldLease, StartOutcome> {
    let failed = |error: StoreError| StartOutcome::Failed {
        why: error.to_string(),
    };
    let dir = host.store.guest(guest).map_err(failed)?;
    let fence = dir.fence().map_err(failed)?;
    let lease = dir.lease();
    let seen = lease.look().map_err(failed)?;
    let found = seen.last.as_ref().map_or(0, |last| last.epoch);
    if found != from_epoch {
        return Err(StartOutcome::LostRace {
            seen: seen.last.as_ref().into(),
        });
    }
    let give_up = Instant::now() + CLAIM_LIMIT;
    loop {
        let watcher = host.watcher_for_claim();
        let claimed = HeldLease::claim(
            &host.keeper,
            lease.clone(),
            &seen,
            Some(&watcher),
            fence.clone(),
            FENCE_LIMIT,
        );
        match claimed {
            // An earlier claim of ours won the epoch and did not live to use it.
            Err(StoreError::Held { source, .. }) if matches!(*source, Held::ByUs { .. }) => {
                return HeldLease::adopt(&host.keeper, lease, fence, FENCE_LIMIT).map_err(failed);
            }
            Err(StoreError::Held { .. }) if Instant::now() < give_up => {
                std::thread::sleep(CLAIM_PAUSE);
            }
            Err(StoreError::Refused { .. }) => {
                let seen = lease.last().map_err(failed)?;
                return Err(StartOutcome::LostRace {
                    seen: seen.as_ref().into(),
                });
            }
            other => return other.map_err(failed),
        }
    }
}

/// Spec, taps and run directory.
pub(super) fn prepare(host: &Host, guest: &str, run_dir: &Path) -> Result<(), String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let dir = host.store.guest(guest).map_err(|e| text(&e))?;
    let file = dir.spec::<GuestFile>().map_err(|e| text(&e))?.spec;
    let image_dir = host.store.image_dir(&file.image).map_err(|e| text(&e))?;
    let disk_path = |name: &str| dir.disk(name).unwrap_or_else(|_| dir.path().join(name));
    let spec = file.spec(guest, &image_dir, host.common_features(), disk_path)?;
    for net in &spec.nets {
        host.bridge.attach_tap(&net.tap).map_err(|e| text(&e))?;
    }
    std::fs::create_dir_all(run_dir).map_err(|e| text(&e))?;
    let toml = toml::to_string_pretty(&spec).map_err(|e| text(&e))?;
    std::fs::write(run_dir.join("guest.toml"), toml).map_err(|e| text(&e))
}
