//! The source of a migration.
//!
//! ```text
//!   Handshake ──► Copying ──► SwitchOver ──► Commit ──► Done
//!       │            │            │            │ └────► Uncertain (stays stopped)
//!       └────────────┴────────────┴────────────┴──────► Failed (runs on here)
//! ```

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use storage_core::record::Holder;
use vm_memory::GuestMemoryBackend;
use vmm_core::converge::{Converge, Decision, Round};
use vmm_core::history::History;
use vmm_core::migration::{Forecast, Migrate, Phase, Steps, Summary};
use vmm_core::standstill::Standstill;

use super::dirty::{SlotBitmap, hot_last};
use super::pages::{self, Touched};
use super::session::{Guest, Session};
use super::standstill::{measure_source, measure_target, micros_since};
use super::stream::Security;
use super::watch::Watch;
use super::wire::{Kind, Ready, Running, StateFrame};
use super::{MigrationError, fault, rehearsal};
use crate::urgent::Urgent;

/// From stopping the guest to the commit, the other side must not take longer than this or
/// than some times what was predicted, whichever is more ...
const STANDSTILL_MAX: Duration = Duration::from_secs(5);
const STANDSTILL_TIMES: u32 = 4;
/// ... and comparing all memory may take so much more.
const VERIFY_MAX: Duration = Duration::from_mins(2);
/// The target's word that it runs is waited for so long, where the lease says whose the guest is.
const RUNS_MAX: Duration = Duration::from_secs(5);
/// How often to look whether a commit of unknown outcome took place.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// So little memory is there sooner ahead of the state than over connections of its own, each of
/// which wakes a thread and says when it is through.
const IN_LINE_BYTES_MAX: u64 = 1 << 20;

/// How the right to run the guest changed hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Commit {
    /// The target has it, under this epoch (0 without a datastore).
    Done(u64),
    /// It certainly does not, and never will by this migration.
    NotDone(String),
    /// A third host has it: the guest must not run here any more.
    Lost(String),
    /// It could not be found out.
    Unknown(String),
}

/// What the migration needs of whoever drives the guest.
pub trait SourceGuest: Send {
    /// How often each of its processors has waited for a page so far.
    fn faults(&self) -> Vec<u64>;
    /// How long stopping it would take now, where that can be told without doing it.
    fn stop_takes(&self) -> Option<Duration>;
    /// How long handing over the right to run it would take, once that is known.
    fn commit_takes(&mut self) -> Option<Duration>;
    /// Hold each of them back by so many per cent of its time, until it stops.
    fn throttle(&mut self, percents: &[u8]);
    /// What is known of its state while it runs, encoded; none once it has ended.
    fn draft(&self) -> Option<Vec<u8>>;
    /// Write its disks back, so that little is left to write when it stands still.
    fn write_back(&self);
    /// Stop the guest and finish its I/O: its memory stands still from now on. Begin to copy its
    /// state.
    fn stop(&mut self) -> Result<(), String>;
    /// Its state.
    fn save(&mut self) -> Result<Saved, String>;
    /// Let go of its disks.
    fn release(&mut self) -> Result<(), String>;
    /// Undo all of it: the guest goes on here.
    fn go_on(&mut self) -> Result<(), String>;
    /// Hand the right to run the guest to `holder`.
    fn commit(&mut self, holder: Option<Holder>) -> Commit;
    /// Look again what became of a commit of unknown outcome; `None` when nobody cares any
    /// more, because the guest was ended.
    fn look_again(&mut self) -> Option<Commit>;
}

/// The state of a guest that stands still.
pub struct Saved {
    /// Encoded.
    pub machine: Vec<u8>,
    /// An operator has paused it.
    pub paused: bool,
}

/// How it ended.
#[derive(Debug)]
pub enum Outcome {
    /// The guest runs on the target; the source must end.
    Moved(Summary),
    /// It was a dry run, and all is as before.
    Rehearsed(Forecast),
    /// The guest runs on here.
    Stayed(MigrationError),
    /// The guest stands still here and must not run before somebody found out where it is.
    Stopped(MigrationError),
    /// Another host has the guest; the source must end.
    Lost(String),
}

/// Move the guest as `wish` says.
pub fn migrate(
    wish: &Migrate,
    security: &Security,
    guest: Guest,
    driver: &mut dyn SourceGuest,
    watch: &Watch,
) -> Outcome {
    let began = Instant::now();
    let outcome = thread::scope(|scope| {
        let guard = thread::Builder::new().name("migration-guard".into());
        let guarded = guard.spawn_scoped(scope, || watch.lifeline.guard());
        let outcome = guarded
            .map_err(|error| MigrationError::Here(format!("cannot start a thread: {error}")))
            .and_then(|_| Session::connect(wish, security, guest, watch))
            .map_or_else(
                |error| Outcome::Stayed(watch.lifeline.blame(error)),
                |session| proceed(wish, watch, session, began, driver),
            );
        watch.lifeline.finish();
        outcome
    });
    watch.update(|progress| match &outcome {
        Outcome::Moved(summary) => {
            progress.phase = Phase::Done;
            progress.summary = Some(summary.clone());
        }
        Outcome::Rehearsed(forecast) => {
            progress.phase = Phase::Rehearsed;
            progress.forecast = Some(forecast.clone());
        }
        Outcome::Stayed(error) => {
            progress.phase = Phase::Failed;
            progress.error = Some(error.to_string());
        }
        Outcome::Stopped(error) => {
            progress.phase = Phase::Uncertain;
            progress.error = Some(error.to_string());
        }
        Outcome::Lost(why) => {
            progress.phase = Phase::Uncertain;
            progress.error = Some(why.clone());
        }
    });
    watch.tell();
    outcome
}

/// Both sides agree that it fits.
fn proceed(
    wish: &Migrate,
    watch: &Watch,
    mut session: Session<'_>,
    began: Instant,
    driver: &mut dyn SourceGuest,
) -> Outcome {
    if wish.dry_run {
        return match rehearsal::rehearse(&mut session, driver, began) {
            Ok(forecast) => Outcome::Rehearsed(forecast),
            Err(error) => Outcome::Stayed(watch.lifeline.blame(error)),
        };
    }
    let mut source = Source {
        wish,
        watch,
        began,
        session,
        converge: Converge::new(wish.goal, None),
        standstill: Standstill::default(),
        steps: Steps::default(),
        urgent: None,
    };
    source.run(driver)
}

struct Source<'a> {
    wish: &'a Migrate,
    watch: &'a Watch,
    began: Instant,
    session: Session<'a>,
    converge: Converge,
    standstill: Standstill,
    steps: Steps,
    /// From stopping the guest on.
    urgent: Option<Urgent>,
}

/// Measures steps that follow each other.
struct StepClock(Instant);

impl StepClock {
    /// How long it has been since the last time, in microseconds.
    fn step(&mut self) -> u64 {
        let before = std::mem::replace(&mut self.0, Instant::now());
        (self.0 - before).as_micros() as u64
    }
}

impl Source<'_> {
    fn run(&mut self, driver: &mut dyn SourceGuest) -> Outcome {
        let predicted_us = match self.copy(driver) {
            Ok(predicted_us) => predicted_us,
            Err(error) => {
                let error = self.watch.lifeline.blame(error);
                self.session.abort(&error.to_string());
                return Outcome::Stayed(error);
            }
        };
        self.watch
            .update(|progress| progress.phase = Phase::SwitchOver);
        let predicted = Duration::from_micros(predicted_us) * STANDSTILL_TIMES;
        let verifying = if self.wish.verify {
            VERIFY_MAX
        } else {
            Duration::ZERO
        };
        let lifeline = &self.watch.lifeline;
        lifeline.limit(STANDSTILL_MAX.max(predicted) + verifying);
        // Comparing all memory takes a processor for long.
        self.urgent = (!self.wish.verify).then(Urgent::new);
        let mut clock = StepClock(Instant::now());
        let ready = match self.switch_over(driver, &mut clock).and_then(|ready| {
            // Whoever wants to end it has to come before this.
            lifeline.commit()?;
            Ok(ready)
        }) {
            Ok(ready) => ready,
            Err(error) => return self.go_on(driver, lifeline.blame(error)),
        };
        self.commit(driver, |source, epoch| {
            source.steps.commit_us = clock.step();
            source.hand_over(epoch, &mut clock, predicted_us, ready)
        })
    }

    /// Hand the right over, and find out whether it was.
    fn commit(
        &mut self,
        driver: &mut dyn SourceGuest,
        done: impl FnOnce(&mut Self, u64) -> Outcome,
    ) -> Outcome {
        self.watch.update(|progress| progress.phase = Phase::Commit);
        let mut commit = driver.commit(self.session.accept.holder.clone());
        loop {
            match commit {
                Commit::Done(epoch) => return done(self, epoch),
                Commit::NotDone(why) => return self.go_on(driver, MigrationError::Here(why)),
                Commit::Lost(why) => return Outcome::Lost(why),
                Commit::Unknown(why) => {
                    self.watch.update(|progress| {
                        progress.phase = Phase::Uncertain;
                        progress.error = Some(why.clone());
                    });
                    thread::sleep(LOOK_PAUSE);
                    match driver.look_again() {
                        Some(now) => commit = now,
                        None => return Outcome::Stopped(MigrationError::Here(why)),
                    }
                }
            }
        }
    }

    /// Rounds of pre-copy; returns the predicted blackout when it is short enough.
    fn copy(&mut self, driver: &mut dyn SourceGuest) -> Result<u64, MigrationError> {
        self.watch
            .update(|progress| progress.phase = Phase::Copying);
        self.watch.tell();
        self.tell_draft(driver)?;
        measure_target(&mut self.standstill, &mut self.session)?;
        let touched = Touched::open().ok();
        let mut history = vec![History::default(); self.session.memory.num_regions()];
        loop {
            let before = Instant::now();
            let faults_before = driver.faults();
            let first = self.session.round == 0;
            let sent_before = self.watch.sent_bytes.load(Ordering::Relaxed);
            let mut dirty = self.session.tracker.collect()?;
            self.standstill.look_took(micros_since(before));
            // At first every page counts as dirty, which says nothing of it.
            if !first {
                dirty = hot_last(dirty, &mut history);
                self.tell_draft(driver)?;
            }
            self.session.begin_round();
            self.session
                .send_round(&dirty, touched.as_ref().filter(|_| first), true)?;
            self.session.hear_round_done()?;
            self.watch.lifeline.check()?;
            let took_us = micros_since(before);
            driver.write_back();
            let left = self.session.tracker.dirty_bytes()?;
            let round = Round {
                sent_bytes: self.watch.sent_bytes.load(Ordering::Relaxed) - sent_before,
                took_us,
                dirty_bytes: left,
            };
            let faults = driver.faults();
            let new_faults = faults.iter().zip(&faults_before);
            let new_faults: Vec<u64> = new_faults.map(|(now, then)| now - then).collect();
            measure_source(&mut self.standstill, driver);
            self.converge.set_fixed(self.standstill.fixed_us());
            let decision = self.converge.after(round, &new_faults);
            self.watch.update(|progress| {
                progress.rate = self.converge.rate_bytes_per_ms() * 1000;
                progress.dirty_bytes = left;
                progress.dirty_rate = round.dirty_rate();
                progress.predicted_blackout_us = self.converge.predict_us(left);
            });
            self.watch.tell();
            match decision {
                Decision::Continue => {}
                Decision::Throttle => driver.throttle(self.converge.throttle_percents()),
                Decision::SwitchOver { predicted_us } => return Ok(predicted_us),
                Decision::GiveUp { predicted_us } => {
                    let fixed_us = self.standstill.fixed_us();
                    return Err(MigrationError::TooLong {
                        predicted_us,
                        fixed_us,
                    });
                }
            }
        }
    }

    /// What takes the target long is poured in there before the guest stands still.
    fn tell_draft(&mut self, driver: &dyn SourceGuest) -> Result<(), MigrationError> {
        let draft = driver.draft();
        draft.map_or(Ok(()), |draft| self.session.tell_draft(draft))
    }

    /// Stop the guest and send the rest. On return the target is ready to run it.
    fn switch_over(
        &mut self,
        driver: &mut dyn SourceGuest,
        clock: &mut StepClock,
    ) -> Result<Ready, MigrationError> {
        driver.stop().map_err(MigrationError::Here)?;
        self.steps.stop_us = clock.step();
        // Memory travels while the processors copy their state.
        let dirty = self.session.tracker.collect()?;
        self.session.begin_round();
        fault::last_round_begins();
        let left: u64 = dirty.iter().map(SlotBitmap::dirty_bytes).sum();
        let in_line = left <= IN_LINE_BYTES_MAX;
        if in_line {
            self.session.send_in_line(&dirty)?;
        } else {
            self.session.send_round(&dirty, None, false)?;
        }
        self.steps.memory_us = clock.step();
        let Saved { machine, paused } = driver.save().map_err(MigrationError::Here)?;
        let check = || self.watch.lifeline.check();
        let hash = || pages::hash(&self.session.memory, check);
        let memory_hash = self.wish.verify.then(hash).transpose()?;
        let state = StateFrame {
            machine,
            paused,
            memory_hash,
        };
        self.session.tell(Kind::State, &state)?;
        self.steps.save_us = clock.step();
        // The target takes them only after the commit.
        driver.release().map_err(MigrationError::Here)?;
        if !in_line {
            self.session.hear_round_done()?;
        }
        let ready = self.session.expect(Kind::Ready)?;
        self.steps.pour_us = clock.step();
        Ok(ready)
    }

    /// The right is the target's: whatever happens now, the guest does not run here again.
    fn hand_over(
        &mut self,
        epoch: u64,
        clock: &mut StepClock,
        predicted_us: u64,
        ready: Ready,
    ) -> Outcome {
        if epoch > 0 {
            self.session.hurry(RUNS_MAX);
        }
        let told = self.session.tell(Kind::Commit, &epoch);
        // The guest may run on this very host, which then has better things to do than to hear of it.
        self.urgent = None;
        let runs = told.and_then(|()| self.session.expect::<Running>(Kind::Running));
        let start_us = clock.step();
        let guest_start_us = match runs {
            // The way of the commit there is half of that there and back.
            Ok(Running { took_us }) => start_us.min(took_us + self.standstill.empty_round_us() / 2),
            // The lease says whose it is; the target reads it there.
            Err(_) if epoch > 0 => start_us,
            Err(error) => return Outcome::Stopped(error),
        };
        self.steps.start_us = start_us;
        let blackout_us = self.steps.total_us();
        Outcome::Moved(Summary {
            total_us: self.began.elapsed().as_micros() as u64,
            blackout_us,
            predicted_blackout_us: predicted_us,
            steps: self.steps,
            sent_bytes: self.watch.sent_bytes.load(Ordering::Relaxed),
            skipped_bytes: self.watch.skipped_bytes.load(Ordering::Relaxed),
            rounds: self.session.round,
            verified: ready.verified,
            guest_blackout_us: blackout_us - start_us + guest_start_us,
        })
    }

    /// The guest goes on here; before anything else, because it stands still.
    fn go_on(&mut self, driver: &mut dyn SourceGuest, error: MigrationError) -> Outcome {
        let resumed = driver.go_on();
        self.session.abort(&error.to_string());
        match resumed {
            Ok(()) => Outcome::Stayed(error),
            Err(why) => Outcome::Stopped(MigrationError::Here(format!("{error}; and then: {why}"))),
        }
    }
}
