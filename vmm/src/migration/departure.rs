//! A guest of this process leaves: what [`super::source`] needs of it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shared_storage::lease::HandOver;
use storage_core::record::Holder;
use vmm_core::compat::CpuidLeaf;
use vmm_core::migration::Migrate;

use super::MigrationError;
use super::source::{self, Commit, Outcome, SourceGuest, Watch};
use super::stream::Security;
use super::wire::Hello;
use crate::codec;
use crate::error::one_line;
use crate::guest::{Guest, Hold};
use crate::kvm::KvmError;
use crate::machine::state::STATE_VERSION;
use crate::notice::Notice;
use crate::vcpu::cpuid;

/// The datastore has so long to answer at the commit.
const COMMIT_LIMIT: Duration = Duration::from_secs(10);

/// Departures of one guest: one at a time.
#[derive(Default)]
pub struct Departures {
    under_way: AtomicBool,
    watch: std::sync::Mutex<Arc<Watch>>,
}

impl Departures {
    /// The latest departure.
    pub fn latest(&self) -> Arc<Watch> {
        self.watch
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// Begin to move `guest` as `wish` says; [`Departures::latest`] tells how it goes.
    pub fn begin(guest: Arc<Guest>, wish: Migrate) -> Result<(), MigrationError> {
        if guest.departures().under_way.load(Ordering::Acquire) {
            return Err(MigrationError::Here(
                "a migration is under way already".to_owned(),
            ));
        }
        let depart = move || {
            if let Err(error) = guest.departures().depart(&guest, &wish) {
                tracing::warn!(error = one_line(&error), "cannot migrate");
            }
        };
        let begun = std::thread::Builder::new()
            .name("migration".into())
            .spawn(depart);
        begun
            .map(drop)
            .map_err(|error| MigrationError::Here(error.to_string()))
    }

    /// Move `guest` as `wish` says, and wait for the end of it.
    pub fn depart(&self, guest: &Arc<Guest>, wish: &Migrate) -> Result<Outcome, MigrationError> {
        if self.under_way.swap(true, Ordering::AcqRel) {
            return Err(MigrationError::Here(
                "a migration is under way already".to_owned(),
            ));
        }
        let watch = Arc::new(Watch::default());
        *self
            .watch
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = watch.clone();
        guest.set_migrating(true);
        let outcome = depart(guest, wish, &watch);
        guest.set_migrating(false);
        self.under_way.store(false, Ordering::Release);
        outcome
    }
}

fn depart(guest: &Arc<Guest>, wish: &Migrate, watch: &Watch) -> Result<Outcome, MigrationError> {
    let here = |error: &dyn std::error::Error| MigrationError::Here(one_line(error));
    let security = Security::from_dir(wish.tls_dir.as_deref().map(Path::new));
    let security = security.map_err(|error| here(&error))?;
    // Before the log: a reboot in between shows at the switch-over.
    let reboots = guest.reboots();
    let moving = source::Guest {
        log: guest.dirty_log().map_err(|error| here(&error))?,
        memory: guest.memory().clone(),
        hello: Hello {
            spec: toml::to_string(guest.spec()).map_err(|error| here(&error))?,
            state_version: STATE_VERSION,
            cpuid: shown_features(guest)?,
            epoch: guest.lease().and_then(|lease| lease.epoch()),
            connections: wish.connections,
            token: random_token(),
            verify: wish.verify,
        },
    };
    let mut driver = Driver { guest, reboots };
    let outcome = source::migrate(wish, &security, moving, &mut driver, watch);
    let ending = match &outcome {
        Outcome::Moved(_) => {
            watch.wait_until_end_was_seen();
            Notice::Moved
        }
        Outcome::Lost(why) => Notice::LeaseLost(why.clone()),
        Outcome::Stayed(_) | Outcome::Stopped(_) => return Ok(outcome),
    };
    // Nobody listens only when the process ends anyway.
    let _ = guest.notices().send(ending);
    Ok(outcome)
}

fn random_token() -> [u8; 16] {
    let mut token = [0; 16];
    // The token keeps connections apart; TLS keeps strangers out.
    let _ = rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty());
    token
}

/// What this host shows guests of its processors' features.
pub fn features_here(kvm: &kvm_ioctls::Kvm) -> Result<Vec<CpuidLeaf>, KvmError> {
    let supported = cpuid::supported(kvm)?;
    let leaves = supported.as_slice().iter().map(|entry| CpuidLeaf {
        function: entry.function,
        index: entry.index,
        registers: [entry.eax, entry.ebx, entry.ecx, entry.edx],
    });
    Ok(leaves.collect())
}

fn shown_features(guest: &Guest) -> Result<Vec<CpuidLeaf>, MigrationError> {
    Ok(features_here(guest.kvm())?)
}

struct Driver<'a> {
    guest: &'a Arc<Guest>,
    reboots: u64,
}

impl SourceGuest for Driver<'_> {
    fn stop(&mut self) -> Result<(), String> {
        self.guest
            .hold(Hold::Migration)
            .map_err(|error| one_line(&error))?;
        if self.guest.reboots() != self.reboots {
            return Err("the guest rebooted while it was on its way; try again".to_owned());
        }
        Ok(())
    }

    fn save(&mut self) -> Result<Vec<u8>, String> {
        let state = self.guest.save().map_err(|error| one_line(&error))?;
        self.guest
            .backends()
            .release_disks()
            .map_err(|error| one_line(&error))?;
        codec::encode(&state).map_err(|error| one_line(&error))
    }

    fn go_on(&mut self) -> Result<(), String> {
        self.guest
            .backends()
            .acquire_disks()
            .map_err(|error| one_line(&error))?;
        let resumed = self.guest.unhold(Hold::Migration);
        resumed.map(|_| ()).map_err(|error| one_line(&error))
    }

    fn commit(&mut self, holder: Option<Holder>) -> Commit {
        match (self.guest.lease(), holder) {
            (None, _) => Commit::Done(0),
            (Some(lease), Some(holder)) => match lease.hand_over(holder, COMMIT_LIMIT) {
                HandOver::Done(record) => Commit::Done(record.epoch),
                HandOver::NotDone => Commit::NotDone("the lease could not be handed over".into()),
                HandOver::Lost(record) => Commit::Lost(format!(
                    "a third host has its lease (epoch {})",
                    record.epoch
                )),
                HandOver::Unknown => Commit::Unknown(
                    "the datastore does not say whether the lease was handed over; the guest \
                     stands still until it does"
                        .into(),
                ),
            },
            (Some(_), None) => Commit::NotDone(
                "the target has no datastore; start it with the same --datastore and --guest"
                    .into(),
            ),
        }
    }
}
