//! A guest of this process leaves: what [`super::source`] needs of it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use shared_storage::image::ImageIdentity;
use shared_storage::lease::{HandOver, LeaseRecord};
use storage_core::record::Holder;
use vmm_core::migration::Migrate;

use super::MigrationError;
use super::session;
use super::source::{self, Commit, Outcome, Saved, SourceGuest};
use super::stream::Security;
use super::throttle::Throttle;
use super::watch::Watch;
use super::wire::{Hello, Token};
use crate::codec;
use crate::error::one_line;
use crate::guest::{Guest, Hold, Moment};
use crate::machine::state::STATE_VERSION;
use crate::machine::{Inspect, Saving};
use crate::notice::Notice;
use crate::vcpu::state::{self, VcpuState};

/// The datastore has so long to answer at the commit, ...
const COMMIT_LIMIT: Duration = Duration::from_secs(10);
/// ... and so long beyond the first round to say beforehand how long that would take.
const REHEARSAL_LIMIT: Duration = Duration::from_millis(500);
/// A processor that has not said by then whether it runs guests of its own is asked again when it
/// stands still.
const NESTED_LIMIT: Duration = Duration::from_millis(500);

const NESTED: &str = "the guest runs virtual machines of its own, which cannot move; stop them \
                      and unload its kvm module (modprobe -r kvm_amd kvm_intel)";

/// Departures of one guest: one at a time.
#[derive(Default)]
pub struct Departures {
    under_way: AtomicBool,
    watch: std::sync::Mutex<Arc<Watch>>,
}

impl Departures {
    /// The latest departure.
    pub fn latest(&self) -> Arc<Watch> {
        let latest = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        latest.clone()
    }

    /// Begin to move `guest` as `wish` says; [`Departures::latest`] tells how it goes.
    pub fn begin(guest: &Arc<Guest>, wish: Migrate) -> Result<(), MigrationError> {
        let watch = guest.departures().claim(guest, &wish)?;
        let moving = guest.clone();
        let depart = move || {
            let linger = Watch::wait_until_end_was_seen;
            if let Err(error) = moving.departures().follow(&moving, &wish, &watch, linger) {
                tracing::warn!(error = one_line(&error), "cannot migrate");
            }
        };
        let begun = std::thread::Builder::new()
            .name("migration".into())
            .spawn(depart);
        begun.map(drop).map_err(|error| {
            guest.departures().under_way.store(false, Ordering::Release);
            MigrationError::Here(error.to_string())
        })
    }

    /// Move `guest` as `wish` says, and wait for the end of it.
    pub fn depart(&self, guest: &Arc<Guest>, wish: &Migrate) -> Result<Outcome, MigrationError> {
        let watch = self.claim(guest, wish)?;
        self.follow(guest, wish, &watch, |_| ())
    }

    /// From here on [`Departures::latest`] is the new one.
    fn claim(&self, guest: &Guest, wish: &Migrate) -> Result<Arc<Watch>, MigrationError> {
        if self.under_way.swap(true, Ordering::AcqRel) {
            return Err(MigrationError::Here(
                "a migration is under way already; wait for its end, or give it up with \
                 `vmm ctl cancel-migration`"
                    .to_owned(),
            ));
        }
        // A dry run is nothing that happens to the guest.
        let events = (!wish.dry_run).then(|| guest.events().clone());
        let watch = Arc::new(Watch::told_to(events.unwrap_or_default()));
        let mut latest = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        latest.clone_from(&watch);
        Ok(watch)
    }

    fn follow(
        &self,
        guest: &Arc<Guest>,
        wish: &Migrate,
        watch: &Watch,
        before_end: impl FnOnce(&Watch),
    ) -> Result<Outcome, MigrationError> {
        // What is away looks as if it had never been touched.
        let _home = guest.keep_memory_home();
        // A dry run is none of anybody's business.
        guest.set_migrating(!wish.dry_run);
        let outcome = depart(guest, wish, watch, before_end);
        if let Err(error) = &outcome {
            watch.fail(error);
        }
        guest.set_migrating(false);
        self.under_way.store(false, Ordering::Release);
        outcome
    }
}

fn depart(
    guest: &Arc<Guest>,
    wish: &Migrate,
    watch: &Watch,
    before_end: impl FnOnce(&Watch),
) -> Result<Outcome, MigrationError> {
    let here = |error: &dyn std::error::Error| MigrationError::Here(one_line(error));
    let security = Security::from_dir(wish.tls_dir.as_deref().map(Path::new));
    let security = security.map_err(|error| here(&error))?;
    refuse_nested(guest)?;
    // Before the log: whatever the machine asks for from now on shows at the switch-over.
    let since = guest.moment();
    let lease = guest.lease().and_then(|lease| lease.record());
    let attempt = random_token().map_err(|error| here(&error))?;
    let moving = session::Guest {
        log: guest.dirty_log().map_err(|error| here(&error))?,
        memory: guest.memory().clone(),
        hello: Hello {
            spec: toml::to_string(guest.spec()).map_err(|error| here(&error))?,
            state_version: STATE_VERSION,
            cpuid: guest
                .inspect(|machine| machine.shown())
                .map_err(|error| here(&error))?,
            lease: lease.clone(),
            disks: disks(guest)?,
            connections: wish.connections,
            token: attempt,
            verify: wish.verify,
            dry_run: wish.dry_run,
        },
    };
    let mut driver = Driver {
        guest,
        since,
        attempt,
        lease,
        commit: rehearse_commit(guest),
        throttle: Throttle::new(guest.clone()),
        saving: None,
    };
    let outcome = source::migrate(wish, &security, moving, &mut driver, watch);
    let ending = match &outcome {
        Outcome::Moved(_) => Some(Notice::Moved),
        Outcome::Lost(why) => Some(Notice::LeaseLost(why.clone())),
        Outcome::Stopped(_) => None,
        Outcome::Stayed(_) | Outcome::Rehearsed(_) => return Ok(outcome),
    };
    if let Some(ending) = ending {
        before_end(watch);
        // Nobody listens only when the process ends anyway.
        let _ = guest.notices().send(ending);
    }
    // After the notice: whoever waits for this finds it.
    guest.left();
    Ok(outcome)
}

/// That cannot move, which is better known before anything travels.
fn refuse_nested(guest: &Guest) -> Result<(), MigrationError> {
    let ask = |machine: &dyn Inspect| -> Vec<_> {
        let vcpus = machine.vcpus().iter();
        vcpus.map(|vcpu| vcpu.have_read(state::is_nested)).collect()
    };
    let answers = guest.inspect(ask);
    let answers = answers.map_err(|error| MigrationError::Here(one_line(&error)))?;
    let give_up = Instant::now() + NESTED_LIMIT;
    let says_so = |answer: &Receiver<bool>| {
        let left = give_up.saturating_duration_since(Instant::now());
        answer.recv_timeout(left) == Ok(true)
    };
    if answers.iter().any(says_so) {
        return Err(MigrationError::Here(NESTED.to_owned()));
    }
    Ok(())
}

/// Keeps connections apart and names the hand-over; TLS keeps strangers out.
fn random_token() -> std::io::Result<Token> {
    let mut token = Token::default();
    rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty())?;
    Ok(token)
}

/// Find out how long the commit would take, while memory travels: a datastore that is silent must
/// not keep the migration waiting.
fn rehearse_commit(guest: &Arc<Guest>) -> Option<Receiver<Duration>> {
    let lease = guest.lease()?.clone();
    let (sender, receiver) = sync_channel(1);
    let rehearse = move || match lease.citizen().hand_over_takes() {
        // Nobody waits any more where that took too long.
        Ok(took) => drop(sender.send(took)),
        Err(error) => tracing::debug!(error = one_line(&error), "cannot rehearse the commit"),
    };
    let thread = std::thread::Builder::new().name("commit-rehearsal".into());
    thread.spawn(rehearse).ok().map(|_| receiver)
}

fn disks(guest: &Guest) -> Result<Vec<ImageIdentity>, MigrationError> {
    let disks = guest.backends().disks.iter();
    let identities = disks.map(|disk| disk.identity());
    let identities: Result<_, _> = identities.collect();
    identities.map_err(|error| MigrationError::Here(one_line(&error)))
}

struct Driver<'a> {
    guest: &'a Arc<Guest>,
    since: Moment,
    attempt: Token,
    /// The lease as it was when the migration began.
    lease: Option<LeaseRecord>,
    /// How long the commit would take.
    commit: Option<Receiver<Duration>>,
    throttle: Throttle,
    /// Its state is being copied.
    saving: Option<Saving>,
}

impl SourceGuest for Driver<'_> {
    fn faults(&self) -> Vec<u64> {
        self.throttle.faults()
    }

    fn stop_takes(&self) -> Option<Duration> {
        self.throttle.stop_takes()
    }

    fn commit_takes(&mut self) -> Option<Duration> {
        let took = self.commit.as_ref()?.recv_timeout(REHEARSAL_LIMIT);
        self.commit = None;
        took.ok()
    }

    fn throttle(&mut self, percents: &[u8]) {
        self.throttle.set(percents);
    }

    fn draft(&self) -> Option<Vec<u8>> {
        let draft = self.guest.inspect(|machine| machine.draft()).ok()?;
        codec::encode(&draft).ok()
    }

    fn write_back(&self) {
        for disk in &self.guest.backends().disks {
            if let Err(error) = disk.flush() {
                // Letting go of it does it again, and says so.
                tracing::debug!(error = one_line(&error), "cannot write a disk back");
            }
        }
    }

    fn stop(&mut self) -> Result<(), String> {
        self.throttle.release();
        let saving = self.guest.leave(self.since);
        self.saving = Some(saving.map_err(|error| one_line(&error))?);
        Ok(())
    }

    fn save(&mut self) -> Result<Saved, String> {
        let saving = self.saving.take().ok_or("the guest was not stopped")?;
        let state = self.guest.finish_save(saving);
        let state = state.map_err(|error| one_line(&error))?;
        if state.vcpus.iter().any(VcpuState::is_nested) {
            return Err(NESTED.to_owned());
        }
        Ok(Saved {
            machine: codec::encode(&state).map_err(|error| one_line(&error))?,
            paused: self.guest.is_held_by(Hold::Operator),
        })
    }

    fn release(&mut self) -> Result<(), String> {
        let released = self.guest.backends().release_disks();
        released.map_err(|error| one_line(&error))
    }

    fn go_on(&mut self) -> Result<(), String> {
        if self.guest.state().is_none() {
            // It has ended here, and nowhere else does it run.
            return Ok(());
        }
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
            (Some(lease), Some(holder)) => {
                became(lease.hand_over(holder, self.attempt, COMMIT_LIMIT))
            }
            (Some(_), None) => Commit::NotDone(
                "the target has no datastore; start it with the same --datastore and --guest"
                    .into(),
            ),
        }
    }

    fn look_again(&mut self) -> Option<Commit> {
        // An operator may end what stands still.
        self.guest.left();
        self.guest.state()?;
        let lease = self.guest.lease()?;
        let from = self.lease.as_ref()?;
        Some(became(lease.look_again(&self.attempt, from)))
    }
}

fn became(hand_over: HandOver) -> Commit {
    match hand_over {
        HandOver::Done(record) => Commit::Done(record.epoch),
        HandOver::NotDone => Commit::NotDone("the lease could not be handed over".into()),
        HandOver::Lost(record) => Commit::Lost(format!(
            "a third host has its lease (epoch {})",
            record.epoch
        )),
        HandOver::Unknown => Commit::Unknown(
            "the datastore does not say whether the lease was handed over; the guest stands \
             still until it does"
                .into(),
        ),
    }
}
