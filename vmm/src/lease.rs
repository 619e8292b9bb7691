//! The right to run the guest, in the hands of this process.
//!
//! The agent has claimed the lease for us; we adopt it, keep the host alive in the eyes of
//! others when the agent is silent, and stop the guest when the lease says so. The gate in
//! front of the disks is shut by then: a late stop costs nothing but time.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use clap::Args;
use shared_storage::lease::{
    Ending, HandOver, HeldLease, Holder, LeaseGate, Notice as LeaseNotice,
};
use shared_storage::{DEFAULT_RUN_DIR, Datastore, Keeper, LocalHost, Role, StoreError};
use vmm_core::control::Happening;

use crate::guest::{Guest, GuestError, Hold};
use crate::notice::Notice;

/// The lease must be ours within this.
const ADOPT_LIMIT: Duration = Duration::from_secs(30);
const STACK_BYTES: usize = 128 << 10;

/// Where the guest's lease is.
#[derive(Debug, Clone, Args)]
#[group(id = "lease")]
pub struct LeaseFlags {
    /// Run the guest under its lease in this datastore.
    #[arg(long, value_name = "DIR", requires = "guest", requires = "host")]
    datastore: Option<PathBuf>,
    /// Name of the guest in the datastore.
    #[arg(long, value_name = "NAME", requires = "datastore")]
    guest: Option<String>,
    /// Name of this host in the datastore.
    #[arg(long, value_name = "NAME", requires = "datastore")]
    host: Option<String>,
    /// Where this host's processes meet.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
}

/// A datastore that this process is a citizen of, before and after it has a lease.
pub struct Citizen {
    store: Datastore,
    keeper: Keeper,
    guest: String,
}

/// The lease. Dropping it leaves it to this host, whose agent releases it.
pub struct Lease {
    held: Mutex<HeldLease>,
    gate: Arc<LeaseGate>,
    notices: Mutex<Option<Receiver<LeaseNotice>>>,
    citizen: Citizen,
}

impl LeaseFlags {
    /// Open the datastore they name; `None` when they name none.
    pub fn citizen(&self) -> Result<Option<Citizen>, StoreError> {
        let (Some(datastore), Some(guest), Some(host)) = (&self.datastore, &self.guest, &self.host)
        else {
            return Ok(None);
        };
        let store = Datastore::open(datastore)?;
        let host = LocalHost::new(host, &self.run_dir)?;
        let keeper = Keeper::start(&store, &host, Role::Guest)?;
        Ok(Some(Citizen {
            store,
            keeper,
            guest: guest.clone(),
        }))
    }
}

impl Citizen {
    /// The datastore.
    pub fn store(&self) -> &Datastore {
        &self.store
    }

    /// Who would hold the lease here: what the source of a migration hands it to.
    pub fn holder(&self) -> Holder {
        self.keeper.holder()
    }

    /// Does the lease name this host? An error means that it cannot be found out now.
    pub fn owns(&self) -> Result<bool, StoreError> {
        let last = self.store.guest(&self.guest)?.lease().last()?;
        let here = self.keeper.holder();
        let holder = last.and_then(|last| last.holder);
        Ok(holder.is_some_and(|holder| {
            (&holder.host, &holder.incarnation) == (&here.host, &here.incarnation)
        }))
    }

    /// Take up the lease that names this host.
    pub fn adopt(self) -> Result<Lease, StoreError> {
        let dir = self.store.guest(&self.guest)?;
        let mut held = HeldLease::adopt(&self.keeper, dir.lease(), dir.fence()?, ADOPT_LIMIT)?;
        Ok(Lease {
            gate: held.gate(),
            notices: Mutex::new(Some(held.take_notices())),
            held: Mutex::new(held),
            citizen: self,
        })
    }
}

impl Lease {
    /// The gate for the guest's disks.
    pub fn gate(&self) -> Arc<LeaseGate> {
        self.gate.clone()
    }

    /// The datastore it lies in.
    pub fn citizen(&self) -> &Citizen {
        &self.citizen
    }

    /// Its epoch.
    pub fn epoch(&self) -> Option<u64> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.record().map(|record| record.epoch)
    }

    /// Give it to `to`: the commit of a migration. The guest must stand still and its disks
    /// be let go of.
    pub fn hand_over(&self, to: Holder, timeout: Duration) -> HandOver {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.hand_over(to, timeout)
    }

    /// Obey the lease from now on.
    pub fn guard(&self, guest: Arc<Guest>) -> io::Result<()> {
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(notices) = notices.take() else {
            return Ok(());
        };
        thread::Builder::new()
            .name("lease-guard".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                for notice in notices {
                    if let Err(error) = obey(notice, &guest) {
                        tracing::warn!(%error, "cannot do what the lease says");
                    }
                }
            })?;
        Ok(())
    }
}

fn obey(notice: LeaseNotice, guest: &Guest) -> Result<(), GuestError> {
    match notice {
        LeaseNotice::Pause => {
            guest.hold(Hold::Lease)?;
            guest.events().tell(Happening::LeaseSuspended);
        }
        LeaseNotice::Run => {
            if let Some(epoch) = guest.lease().and_then(|lease| lease.epoch()) {
                guest.set_epoch(epoch);
            }
            if guest.is_held_by(Hold::Lease) {
                guest.unhold(Hold::Lease)?;
                guest.events().tell(Happening::LeaseResumed);
            }
        }
        // Whoever handed it over or released it knows what to do next.
        LeaseNotice::Ended(Ending::HandedOver(_) | Ending::Released(_)) => {}
        LeaseNotice::Ended(Ending::Lost(record)) => {
            let host = record
                .holder
                .map_or("nobody".to_owned(), |holder| holder.host.clone());
            let why = format!(
                "the lease of this guest (epoch {}) went to {host}: it must not run here",
                record.epoch
            );
            let _ = guest.notices().send(Notice::LeaseLost(why));
        }
    }
    Ok(())
}
