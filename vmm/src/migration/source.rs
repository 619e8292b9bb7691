//! The source of a migration.
//!
//! ```text
//!   Handshake ──► Copying ──► SwitchOver ──► Commit ──► Done
//!       │            │            │            │ └────► Uncertain (stays stopped)
//!       └────────────┴────────────┴────────────┴──────► Failed (runs on here)
//! ```

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use storage_core::record::Holder;
use vmm_core::converge::{Converge, Decision, Round};
use vmm_core::migration::{CONNECTIONS_MAX, Migrate, Phase, Progress, Summary};

use super::MigrationError;
use super::dirty::{SlotBitmap, Tracker};
use super::pages::{self, Touched};
use super::round::Sending;
use super::stream::{Security, Stream};
use super::wire::{self, Accept, Hello, Kind, StateFrame};
use crate::kvm::DirtyLog;
use crate::memory::GuestMemory;

/// The source's VMM ends after so long, whether or not somebody saw how it went.
const LINGER_MAX: Duration = Duration::from_secs(1);
const LINGER_POLL: Duration = Duration::from_millis(5);

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
    /// Stop the guest and finish its I/O: its memory stands still from now on.
    fn stop(&mut self) -> Result<(), String>;
    /// Copy its state and let go of its disks.
    fn save(&mut self) -> Result<Vec<u8>, String>;
    /// Undo both: the guest goes on here.
    fn go_on(&mut self) -> Result<(), String>;
    /// Hand the right to run the guest to `holder`.
    fn commit(&mut self, holder: Option<Holder>) -> Commit;
}

/// What everybody may look at while a migration is under way.
#[derive(Debug)]
pub struct Watch {
    progress: Mutex<Progress>,
    sent_bytes: AtomicU64,
    skipped_bytes: AtomicU64,
    cancelled: AtomicBool,
    end_was_seen: AtomicBool,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            progress: Mutex::new(Progress {
                phase: Phase::Handshake,
                round: 0,
                sent_bytes: 0,
                left_bytes: 0,
                rate: 0,
                dirty_bytes: 0,
                predicted_blackout_us: 0,
                summary: None,
                error: None,
            }),
            sent_bytes: AtomicU64::new(0),
            skipped_bytes: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
            end_was_seen: AtomicBool::new(false),
        }
    }
}

impl Watch {
    /// How far it is.
    pub fn progress(&self) -> Progress {
        let mut progress = self.lock().clone();
        progress.sent_bytes = self.sent_bytes.load(Ordering::Relaxed);
        if progress.phase == Phase::Done {
            self.end_was_seen.store(true, Ordering::Release);
        }
        progress
    }

    /// Leave whoever watches the migration the time to see how it ended.
    pub fn wait_until_end_was_seen(&self) {
        let give_up = Instant::now() + LINGER_MAX;
        while !self.end_was_seen.load(Ordering::Acquire) && Instant::now() < give_up {
            thread::sleep(LINGER_POLL);
        }
    }

    /// Give up, unless it is too late for that.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// So many bytes of pages went out, and so many needed not.
    pub(super) fn count(&self, sent_bytes: u64, skipped_bytes: u64) {
        self.sent_bytes.fetch_add(sent_bytes, Ordering::Relaxed);
        self.skipped_bytes
            .fetch_add(skipped_bytes, Ordering::Relaxed);
    }

    pub(super) fn check(&self) -> Result<(), MigrationError> {
        if self.cancelled.load(Ordering::Acquire) {
            return Err(MigrationError::Cancelled);
        }
        Ok(())
    }

    fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How it ended.
#[derive(Debug)]
pub enum Outcome {
    /// The guest runs on the target; the source must end.
    Moved(Summary),
    /// The guest runs on here.
    Stayed(MigrationError),
    /// The guest stands still here and must not run before somebody found out where it is.
    Stopped(MigrationError),
    /// Another host has the guest; the source must end.
    Lost(String),
}

/// What moves.
pub struct Guest {
    /// Its dirty log.
    pub log: DirtyLog,
    /// Its memory.
    pub memory: Arc<GuestMemory>,
    /// The offer; token and connections are filled in here.
    pub hello: Hello,
}

/// Move the guest as `wish` says.
pub fn migrate(
    wish: &Migrate,
    security: &Security,
    guest: Guest,
    driver: &mut dyn SourceGuest,
    watch: &Watch,
) -> Outcome {
    let outcome = Source::connect(wish, security, guest, watch)
        .map_or_else(Outcome::Stayed, |mut source| source.run(driver));
    watch.update(|progress| match &outcome {
        Outcome::Moved(summary) => {
            progress.phase = Phase::Done;
            progress.summary = Some(summary.clone());
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
    outcome
}

struct Source<'a> {
    wish: &'a Migrate,
    watch: &'a Watch,
    began: Instant,
    memory: Arc<GuestMemory>,
    tracker: Tracker,
    control: Stream,
    data: Vec<Stream>,
    holder: Option<Holder>,
    converge: Converge,
    round: u32,
}

impl<'a> Source<'a> {
    fn connect(
        wish: &'a Migrate,
        security: &Security,
        guest: Guest,
        watch: &'a Watch,
    ) -> Result<Self, MigrationError> {
        let began = Instant::now();
        let connections = wish.connections.clamp(1, CONNECTIONS_MAX);
        let hello = Hello {
            connections,
            verify: wish.verify,
            ..guest.hello
        };
        let mut control = security
            .connect(&wish.to)
            .map_err(MigrationError::connection("connect to", &wish.to))?;
        let lost = || MigrationError::connection("talk to", &wish.to);
        wire::send(&mut control, Kind::Hello, 0, &hello).map_err(lost())?;
        let accept: Accept = expect(&mut control, Kind::Accept, &wish.to)?;
        let mut data = Vec::new();
        for _ in 0..connections {
            let mut stream = security.connect(&wish.to).map_err(lost())?;
            wire::send(&mut stream, Kind::Join, 0, &hello.token).map_err(lost())?;
            data.push(stream);
        }
        Ok(Self {
            wish,
            watch,
            began,
            tracker: Tracker::start(guest.log, guest.memory.clone())?,
            memory: guest.memory,
            control,
            data,
            holder: accept.holder,
            converge: Converge::new(wish.goal, None),
            round: 0,
        })
    }

    fn run(&mut self, driver: &mut dyn SourceGuest) -> Outcome {
        let predicted_us = match self.copy() {
            Ok(predicted_us) => predicted_us,
            Err(error) => {
                self.abort(&error);
                return Outcome::Stayed(error);
            }
        };
        self.watch
            .update(|progress| progress.phase = Phase::SwitchOver);
        let stopped = Instant::now();
        if let Err(error) = self.switch_over(driver) {
            self.abort(&error);
            return go_on(driver, error);
        }
        self.watch.update(|progress| progress.phase = Phase::Commit);
        let epoch = match driver.commit(self.holder.clone()) {
            Commit::Done(epoch) => epoch,
            Commit::NotDone(why) => {
                let error = MigrationError::Here(why);
                self.abort(&error);
                return go_on(driver, error);
            }
            Commit::Lost(why) => return Outcome::Lost(why),
            Commit::Unknown(why) => return Outcome::Stopped(MigrationError::Here(why)),
        };
        self.hand_over(epoch, stopped, predicted_us)
    }

    /// Rounds of pre-copy; returns the predicted blackout when it is short enough.
    fn copy(&mut self) -> Result<u64, MigrationError> {
        self.watch
            .update(|progress| progress.phase = Phase::Copying);
        let touched = Touched::open().ok();
        loop {
            let before = Instant::now();
            let sent_before = self.watch.sent_bytes.load(Ordering::Relaxed);
            let dirty = self.tracker.collect()?;
            let first = self.round == 0;
            self.round += 1;
            self.send_round(&dirty, touched.as_ref().filter(|_| first), true)?;
            self.hear_round_done()?;
            self.watch.check()?;
            let left = self.tracker.dirty_bytes()?;
            let round = Round {
                sent_bytes: self.watch.sent_bytes.load(Ordering::Relaxed) - sent_before,
                took_us: before.elapsed().as_micros() as u64,
                dirty_bytes: left,
            };
            let decision = self.converge.after(round);
            self.watch.update(|progress| {
                progress.round = self.round;
                progress.rate = self.converge.rate_bytes_per_ms() * 1000;
                progress.dirty_bytes = left;
                progress.predicted_blackout_us = self.converge.predict_us(left);
            });
            match decision {
                Decision::Continue => {}
                Decision::SwitchOver { predicted_us } => return Ok(predicted_us),
                Decision::GiveUp { predicted_us } => {
                    return Err(MigrationError::NotConverging { predicted_us });
                }
            }
        }
    }

    /// Stop the guest and send the rest. On return the target is ready to run it.
    fn switch_over(&mut self, driver: &mut dyn SourceGuest) -> Result<(), MigrationError> {
        driver.stop().map_err(MigrationError::Here)?;
        let dirty = self.tracker.collect()?;
        self.round += 1;
        // Memory stands still: it travels while the processors' state is being copied.
        let machine = thread::scope(|scope| {
            let saving = scope.spawn(|| driver.save());
            let sent = self.send_round(&dirty, None, false);
            let died = || Err("the thread that saves it has died".to_owned());
            let machine = saving.join().unwrap_or_else(|_| died());
            sent.and_then(|()| machine.map_err(MigrationError::Here))
        })?;
        let memory_hash = self.wish.verify.then(|| pages::hash(&self.memory));
        let state = StateFrame {
            machine,
            memory_hash,
        };
        self.tell(Kind::State, &state)?;
        self.hear_round_done()?;
        expect::<()>(&mut self.control, Kind::Ready, &self.wish.to)
    }

    /// The right is the target's: whatever happens now, the guest does not run here again.
    fn hand_over(&mut self, epoch: u64, stopped: Instant, predicted_us: u64) -> Outcome {
        let told = self.tell(Kind::Commit, &epoch);
        let runs =
            told.and_then(|()| expect::<()>(&mut self.control, Kind::Running, &self.wish.to));
        match runs {
            // The lease says whose it is; the target reads it there.
            Err(_) if epoch > 0 => {}
            Err(error) => return Outcome::Stopped(error),
            Ok(()) => {}
        }
        Outcome::Moved(Summary {
            total_us: self.began.elapsed().as_micros() as u64,
            blackout_us: stopped.elapsed().as_micros() as u64,
            predicted_blackout_us: predicted_us,
            sent_bytes: self.watch.sent_bytes.load(Ordering::Relaxed),
            skipped_bytes: self.watch.skipped_bytes.load(Ordering::Relaxed),
            rounds: self.round,
            verified: self.wish.verify,
        })
    }

    /// Send all dirty pages over all connections. The target's confirmation is still to come.
    fn send_round(
        &mut self,
        dirty: &[SlotBitmap],
        touched: Option<&Touched>,
        goes_on: bool,
    ) -> Result<(), MigrationError> {
        let sending = Sending {
            number: self.round,
            dirty,
            touched,
            goes_on,
            tracker: &self.tracker,
            memory: &self.memory,
            watch: self.watch,
            bandwidth_max: self.wish.bandwidth_max,
            to: &self.wish.to,
        };
        sending.send(&mut self.data)?;
        let round = self.round;
        self.tell(Kind::Round, &round)
    }

    /// The target has all of the round.
    fn hear_round_done(&mut self) -> Result<(), MigrationError> {
        let done: u32 = expect(&mut self.control, Kind::RoundDone, &self.wish.to)?;
        if done != self.round {
            let why = format!("it confirms round {done} instead of {}", self.round);
            return Err(MigrationError::Protocol(why));
        }
        Ok(())
    }

    fn tell<T: serde::Serialize>(&mut self, kind: Kind, payload: &T) -> Result<(), MigrationError> {
        wire::send(&mut self.control, kind, self.round, payload)
            .map_err(MigrationError::connection("talk to", &self.wish.to))
    }

    fn abort(&mut self, error: &MigrationError) {
        // It may be the connection that failed; closing it says the same.
        let _ = wire::send(&mut self.control, Kind::Abort, 0, &error.to_string());
    }
}

fn go_on(driver: &mut dyn SourceGuest, error: MigrationError) -> Outcome {
    match driver.go_on() {
        Ok(()) => Outcome::Stayed(error),
        Err(why) => Outcome::Stopped(MigrationError::Here(format!("{error}; and then: {why}"))),
    }
}

/// Read the control frame that must come now.
fn expect<T: serde::de::DeserializeOwned>(
    control: &mut Stream,
    kind: Kind,
    peer: &str,
) -> Result<T, MigrationError> {
    let (header, payload) =
        wire::receive(control).map_err(MigrationError::connection("hear from", &peer))?;
    let decoded = |error: std::io::Error| MigrationError::Protocol(error.to_string());
    if header.kind == Kind::Refuse {
        return Err(MigrationError::Refused(
            wire::decode(&payload).map_err(decoded)?,
        ));
    }
    if header.kind != kind {
        let why = format!("{:?} came where {kind:?} was due", header.kind);
        return Err(MigrationError::Protocol(why));
    }
    wire::decode(&payload).map_err(decoded)
}
