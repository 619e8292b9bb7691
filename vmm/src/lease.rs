//! The right to run the guest, in the hands of this process.
//!
//! The agent has claimed the lease for us; we adopt it, keep the host alive in the eyes of
//! others when the agent is silent, and stop the guest when the lease says so. The gate in
//! front of the disks is shut by then: a late stop costs nothing but time.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use shared_storage::gate::Gate;
use shared_storage::lease::{
    Ending, Grant, HandOver, HeldLease, Holder, LeaseGate, LeaseRecord, Notice as LeaseNotice,
};
use shared_storage::patience::{ANSWER_LIMIT, within};
use shared_storage::{DEFAULT_RUN_DIR, Datastore, Keeper, LocalHost, Role, StoreError};
use vmm_core::control::Happening;
use vmm_core::spec::Spec;

use crate::error::one_line;
use crate::guest::{Guest, GuestError, Hold};
use crate::notice::Notice;

/// The lease must be ours within this.
const ADOPT_LIMIT: Duration = Duration::from_secs(30);
/// What the source of a migration says of its lease must show here within this, ...
const OFFER_LIMIT: Duration = Duration::from_secs(5);
/// ... looked at with these pauses.
const OFFER_PAUSE: Duration = Duration::from_millis(100);
const STACK_BYTES: usize = 128 << 10;

/// Where the guest's lease is.
#[derive(Debug, Clone, Args)]
#[group(id = "lease")]
pub struct LeaseFlags {
    /// Run the guest under its lease in this datastore. Without one there is no lease: nothing but
    /// the images' locks keeps other processes from its disks.
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

/// Which hand-over, of all that were ever tried: the token of its migration.
pub type Attempt = [u8; 16];

/// What the datastore says about a hand-over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It took place, and is the last word.
    Done(LeaseRecord),
    /// It has not taken place, and may yet.
    Open,
    /// It never will, or somebody has had the lease since.
    Void(LeaseRecord),
}

/// The lease. Dropped without a release it stays with this host, whose agent runs the guest again
/// or releases it.
pub struct Lease {
    held: Mutex<HeldLease>,
    gate: Arc<LeaseGate>,
    notices: Mutex<Option<Receiver<LeaseNotice>>>,
    citizen: Citizen,
    /// When it ran out, as far as that was seen; 0 otherwise.
    ran_out_us: AtomicU64,
}

impl LeaseFlags {
    /// Open the datastore they name; `None` when they name none.
    pub fn citizen(&self) -> Result<Option<Citizen>, StoreError> {
        let (Some(datastore), Some(guest), Some(host)) = (&self.datastore, &self.guest, &self.host)
        else {
            return Ok(None);
        };
        let (root, subject) = (datastore.clone(), datastore.to_string_lossy());
        let open = move || Datastore::open(&root);
        let store = within(ANSWER_LIMIT, "the opening", &subject, open)?;
        let host = LocalHost::new(host, &self.run_dir)?;
        Citizen::new(store, &host, guest).map(Some)
    }
}

impl Citizen {
    /// This process as one of `host`, for `guest`.
    pub fn new(store: Datastore, host: &LocalHost, guest: &str) -> Result<Self, StoreError> {
        let keeper = Keeper::start(&store, host, Role::Guest)?;
        let guest = guest.to_owned();
        Ok(Self {
            store,
            keeper,
            guest,
        })
    }

    /// The datastore.
    pub fn store(&self) -> &Datastore {
        &self.store
    }

    /// Who would hold the lease here: what the source of a migration hands it to.
    pub fn holder(&self) -> Holder {
        self.keeper.holder()
    }

    /// Does the lease as it lies here lead to the one that the source says it holds?
    pub fn check_offer(&self, offered: &LeaseRecord) -> Result<(), String> {
        let guest = &self.guest;
        // The lease names a term of this host's life; it should last beyond the hand-over.
        let beats = self.keeper.wait_live(OFFER_LIMIT);
        beats.map_err(|error| one_line(&error))?;
        let give_up = Instant::now() + OFFER_LIMIT;
        loop {
            let last = self.store.guest(guest).and_then(|dir| dir.lease().last());
            match last.map_err(|error| one_line(&error))? {
                Some(last) if last == *offered => return Ok(()),
                // Directories are cached by network file systems.
                Some(last) if last.epoch < offered.epoch && Instant::now() < give_up => {
                    thread::sleep(OFFER_PAUSE);
                }
                Some(last) => {
                    return Err(format!(
                        "the source offers epoch {} of the lease of {}, but here the lease of \
                         {guest} is at epoch {}; give both sides the same --datastore and --guest",
                        offered.epoch, offered.subject, last.epoch
                    ));
                }
                None => return Err(format!("here nobody ever had the lease of {guest}")),
            }
        }
    }

    /// Refuse disks that would not move with the guest when another host takes it over.
    pub fn check_disks(&self, spec: &Spec) -> Result<(), StoreError> {
        let (store, guest) = (self.store.clone(), self.guest.clone());
        let written = spec.disks.iter().filter(|disk| !disk.readonly);
        let paths: Vec<_> = written.map(|disk| store.root().join(&disk.path)).collect();
        within(
            ANSWER_LIMIT,
            "the look for the disks",
            &self.guest,
            move || {
                let dir = store.guest(&guest)?;
                paths.iter().try_for_each(|path| dir.check_moves(path))
            },
        )
    }

    /// How long handing the lease over would take now.
    pub fn hand_over_takes(&self) -> Result<Duration, StoreError> {
        self.store.guest(&self.guest)?.lease().rehearse()
    }

    /// What became of `attempt`, begun when the source held `from`. An error means that it
    /// cannot be found out now.
    pub fn verdict(&self, attempt: &Attempt, from: &LeaseRecord) -> Result<Verdict, StoreError> {
        let Some(last) = self.store.guest(&self.guest)?.lease().last()? else {
            return Ok(Verdict::Open);
        };
        // A source that lapsed and came back may go on with the migration.
        let came_back = last.grant == Grant::Renewed && same_boot(&last, from);
        Ok(
            if last.grant == Grant::HandedOver && last.nonce == *attempt {
                Verdict::Done(last)
            } else if last.epoch <= from.epoch || came_back {
                Verdict::Open
            } else {
                Verdict::Void(last)
            },
        )
    }

    /// Take up the lease that `attempt` handed over to this host.
    pub fn adopt_from(self, attempt: &Attempt, from: &LeaseRecord) -> Result<Lease, String> {
        match self.verdict(attempt, from) {
            Ok(Verdict::Done(_)) => self.adopt().map_err(|error| one_line(&error)),
            Ok(Verdict::Open) => Err("the lease of this guest was not handed over".to_owned()),
            Ok(Verdict::Void(record)) => Err(taken(&record)),
            Err(error) => Err(one_line(&error)),
        }
    }

    /// Take up the lease that names this host.
    pub fn adopt(self) -> Result<Lease, StoreError> {
        let (store, guest) = (self.store.clone(), self.guest.clone());
        let find = move || store.guest(&guest);
        let dir = within(ANSWER_LIMIT, "the look", &self.guest, find)?;
        let mut held = HeldLease::adopt(&self.keeper, dir.lease(), dir.fence()?, ADOPT_LIMIT)?;
        Ok(Lease {
            gate: held.gate(),
            notices: Mutex::new(Some(held.take_notices())),
            held: Mutex::new(held),
            citizen: self,
            ran_out_us: AtomicU64::new(0),
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
        self.record().map(|record| record.epoch)
    }

    /// The record that is held, or that was held before a pause.
    pub fn record(&self) -> Option<LeaseRecord> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.record()
    }

    /// Give it to `to`: the commit of a migration. The guest must stand still and its disks
    /// be let go of.
    pub fn hand_over(&self, to: Holder, attempt: Attempt, timeout: Duration) -> HandOver {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.hand_over(to, attempt, timeout)
    }

    /// The guest is off for good and its writes are complete: whoever wants may have it.
    pub fn release(&self) -> Result<(), StoreError> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.release(ANSWER_LIMIT)
    }

    /// What became of a hand-over that was [`HandOver::Unknown`], begun when we held `from`.
    pub fn look_again(&self, attempt: &Attempt, from: &LeaseRecord) -> HandOver {
        match self.citizen.verdict(attempt, from) {
            Ok(Verdict::Done(record)) => HandOver::Done(record),
            Ok(Verdict::Void(record)) => HandOver::Lost(record),
            // The gate opens again only once it is certain that the hand-over never takes place.
            Ok(Verdict::Open) if self.gate.pass().is_ok() => HandOver::NotDone,
            Ok(Verdict::Open) | Err(_) => HandOver::Unknown,
        }
    }

    /// The guest has stood still for its lease since `at_us`. Others count on `stop_ms` for that.
    pub fn stood_still(&self, at_us: u64) {
        let ran_out_us = self.ran_out_us.swap(0, Ordering::AcqRel);
        let timing = self.citizen.store.timing();
        let took_us = at_us.saturating_sub(ran_out_us);
        if ran_out_us > 0 && took_us > timing.stop_us() {
            tracing::warn!(
                took_ms = took_us / 1000,
                stop_ms = timing.stop_ms,
                "the guest's processors stood still later than cluster.toml's stop_ms allows for; \
                 its disks were shut in time"
            );
        }
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
            if let Some(lease) = guest.lease() {
                let ran_out_us = lease.gate.ran_out_us().unwrap_or_default();
                lease.ran_out_us.store(ran_out_us, Ordering::Release);
            }
            guest.hold(Hold::Lease)?;
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
            let why = taken(&record);
            let _ = guest.notices().send(Notice::LeaseLost(why));
        }
    }
    Ok(())
}

fn same_boot(one: &LeaseRecord, other: &LeaseRecord) -> bool {
    match (&one.holder, &other.holder) {
        (Some(one), Some(other)) => one.same_boot(other),
        _ => false,
    }
}

fn taken(record: &LeaseRecord) -> String {
    let host = record.holder.as_ref();
    format!(
        "the lease of this guest (epoch {}) went to {}: it must not run here",
        record.epoch,
        host.map_or("nobody", |holder| &holder.host)
    )
}
