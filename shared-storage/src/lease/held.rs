//! A lease in the hands of this process: a thread that feeds the state machine of
//! `storage-core` and another that does its file operations, so that a hanging storage
//! stops neither the machine nor the caller.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use storage_core::lease::{Action, Ending, Event, Identity, Lease, Outcome, Refusal, grounds};
use storage_core::observer::Verdict;
use storage_core::record::{Holder, LeaseRecord};

use super::files::{LeaseFiles, Seen};
use super::gate::LeaseGate;
use super::local::LocalLock;
use crate::clock::{boottime_us, random};
use crate::error::StoreError;
use crate::fence::DiskFence;
use crate::keeper::Keeper;
use crate::page::Page;
use crate::watcher::Watcher;

/// Longest sleep of the machine's thread.
const NAP: Duration = Duration::from_millis(250);
/// File operations that may wait for a hanging one before them.
const QUEUE_LIMIT: usize = 8;

/// What the holder is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The guest may run; the gate is open.
    Run,
    /// The guest must stand still now; the gate is shut already.
    Pause,
    /// It is over: never run the guest here again. The process has to exit.
    Ended(Ending),
}

/// How a hand-over went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandOver {
    /// The other host has it. Never resume.
    Done(LeaseRecord),
    /// It is certain that the other host does not have it and never will by this hand-over:
    /// it is still ours. Resume when [`Notice::Run`] comes.
    NotDone,
    /// A third host took it. Never resume.
    Lost(LeaseRecord),
    /// The storage does not answer. Stay paused: a [`Notice`] will tell.
    Unknown,
}

/// A held lease. Dropping it says that none of this process's writes is under way any more;
/// it neither releases the lease nor stops the heartbeat: the lease waits, in the name of
/// this host, to be adopted again.
#[derive(Debug)]
pub struct HeldLease {
    inputs: Sender<Input>,
    notices: Receiver<Notice>,
    gate: Arc<LeaseGate>,
    record: Arc<Mutex<Option<LeaseRecord>>>,
    subject: String,
    local: Arc<LocalLock>,
}

enum Input {
    Event(Box<Event>),
    /// Tell what becomes of what was asked before.
    Reply(Sender<Answer>),
    Close,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Run,
    Ended(Ending),
}

impl HeldLease {
    /// Claims the lease if it is free or its holder is gone, and waits until the guest may
    /// run: fenced where the target can. `seen` is when and how the lease was found; keep it
    /// while you wait for the holder's silence. `watcher` watches the holder; without one
    /// only a free lease, or one of an earlier boot of this host, can be claimed.
    pub fn claim(
        keeper: &Keeper,
        files: LeaseFiles,
        seen: &Seen,
        watcher: Option<&Watcher>,
        fence: Option<DiskFence>,
        timeout: Duration,
    ) -> Result<Self, StoreError> {
        let identity = identity(keeper, &files);
        let can_fence = fence.is_some();
        let holder = seen.last.as_ref().and_then(|last| last.holder.as_ref());
        let verdict = match (watcher, holder) {
            (Some(watcher), Some(holder)) => watcher.verdict(holder, seen.read_us, can_fence),
            _ => Verdict::Unknown,
        };
        let subject = files.subject().to_owned();
        let grounds =
            grounds(&identity, seen.last.as_ref(), verdict).map_err(|source| StoreError::Held {
                subject,
                source: Box::new(source),
            })?;
        let event = Event::Claim {
            last: seen.last.clone(),
            grounds,
            can_fence,
        };
        Self::start(keeper, files, identity, fence, event, timeout)
    }

    /// Takes up a lease that names this host already: because its agent claimed it for this
    /// process, or because another host handed it over.
    pub fn adopt(
        keeper: &Keeper,
        files: LeaseFiles,
        fence: Option<DiskFence>,
        timeout: Duration,
    ) -> Result<Self, StoreError> {
        let give_up = Instant::now() + timeout;
        let Some(last) = files.clone().patient_for(timeout).look()?.last else {
            return Err(StoreError::Missing(files.dir().join("lease")));
        };
        let identity = identity(keeper, &files);
        // Whether a predecessor died is found out under the local lock.
        let first = Event::Adopt { last, died: false };
        let left = give_up.saturating_duration_since(Instant::now());
        Self::start(keeper, files, identity, fence, first, left)
    }

    fn start(
        keeper: &Keeper,
        files: LeaseFiles,
        identity: Identity,
        fence: Option<DiskFence>,
        mut first: Event,
        timeout: Duration,
    ) -> Result<Self, StoreError> {
        let give_up = Instant::now() + timeout;
        keeper.wait_live(timeout)?;
        let local = LocalLock::take(keeper, files.subject(), give_up)?;
        if let Event::Adopt { last, died } = &mut first {
            *died = local.predecessor_died(last);
        }
        let local = Arc::new(local);
        let subject = files.subject().to_owned();
        let gate = Arc::new(LeaseGate::new(keeper.page().clone()));
        let record = Arc::new(Mutex::new(None));
        let (inputs, from_outside) = mpsc::channel();
        let (notify, notices) = mpsc::channel();
        let (reply, answer) = mpsc::channel();
        let machine = Machine {
            lease: Lease::new(identity, *keeper.timing()),
            page: keeper.page().clone(),
            gate: gate.clone(),
            record: record.clone(),
            notify,
            jobs: start_worker(files, fence, inputs.clone())?,
            loopback: inputs.clone(),
            waiting: Some(reply),
            refusal: None,
            local: local.clone(),
        };
        let sent = inputs.send(Input::Event(first.into()));
        debug_assert!(sent.is_ok(), "the receiver is right here");
        let (refused, refusal) = mpsc::channel();
        thread::Builder::new()
            .name("lease".into())
            .spawn(move || machine.run(&from_outside, &refused))
            .map_err(StoreError::io("start the keeping of", &subject))?;
        let held = Self {
            inputs,
            notices,
            gate,
            record,
            subject,
            local,
        };
        held.await_run(&answer, &refusal, give_up, timeout)?;
        Ok(held)
    }

    fn await_run(
        &self,
        answer: &Receiver<Answer>,
        refusal: &Receiver<Refusal>,
        give_up: Instant,
        timeout: Duration,
    ) -> Result<(), StoreError> {
        let subject = self.subject.clone();
        match answer.recv_timeout(give_up.saturating_duration_since(Instant::now())) {
            Ok(Answer::Run) => Ok(()),
            Ok(Answer::Ended(ending)) => {
                let (Ending::Lost(last) | Ending::Released(last) | Ending::HandedOver(last)) =
                    ending;
                let source = Box::new(Refusal::Outrun { last });
                Err(StoreError::Refused { subject, source })
            }
            Err(RecvTimeoutError::Disconnected) => match refusal.try_recv() {
                Ok(source) => Err(StoreError::Refused {
                    subject,
                    source: Box::new(source),
                }),
                Err(_) => Err(self.no_answer("the claim", timeout)),
            },
            Err(RecvTimeoutError::Timeout) => Err(self.no_answer("the claim", timeout)),
        }
    }

    fn no_answer(&self, act: &'static str, timeout: Duration) -> StoreError {
        let waited_ms = timeout.as_millis() as u64;
        StoreError::NoAnswer {
            act,
            subject: self.subject.clone(),
            waited_ms,
        }
    }

    /// The gate for the guest's disks.
    pub fn gate(&self) -> Arc<LeaseGate> {
        self.gate.clone()
    }

    /// What the holder has to do, in order. The first [`Notice::Run`] is already there.
    pub fn notices(&self) -> &Receiver<Notice> {
        &self.notices
    }

    /// Takes [`HeldLease::notices`] away, for a thread that does nothing but wait for them.
    /// Afterwards there are none here.
    pub fn take_notices(&mut self) -> Receiver<Notice> {
        std::mem::replace(&mut self.notices, mpsc::channel().1)
    }

    /// The epoch that is held, or that was held before a pause.
    pub fn record(&self) -> Option<LeaseRecord> {
        self.record
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Gives the lease to `to`: the commit of a migration. The guest is paused and its writes
    /// are complete. The gate is shut from here on, until a [`Notice::Run`].
    /// `nonce` names this hand-over among all: the record carries it.
    pub fn hand_over(&self, to: Holder, nonce: [u8; 16], timeout: Duration) -> HandOver {
        match self.ask(Event::HandOver { to, nonce }, timeout) {
            Some(Answer::Ended(Ending::HandedOver(record))) => HandOver::Done(record),
            Some(Answer::Ended(Ending::Lost(record) | Ending::Released(record))) => {
                HandOver::Lost(record)
            }
            Some(Answer::Run) => HandOver::NotDone,
            None => HandOver::Unknown,
        }
    }

    /// Gives the lease up. The guest is stopped and its writes are complete.
    pub fn release(&self, timeout: Duration) -> Result<(), StoreError> {
        match self.ask(Event::Release, timeout) {
            Some(Answer::Ended(_)) => Ok(()),
            Some(Answer::Run) | None => Err(self.no_answer("the release", timeout)),
        }
    }

    fn ask(&self, event: Event, timeout: Duration) -> Option<Answer> {
        let (reply, answer) = mpsc::channel();
        self.inputs.send(Input::Reply(reply)).ok()?;
        self.inputs.send(Input::Event(event.into())).ok()?;
        answer.recv_timeout(timeout).ok()
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        self.gate.set_term(None);
        self.local.mark(None);
        // The machine may have ended already.
        let _ = self.inputs.send(Input::Close);
    }
}

fn identity(keeper: &Keeper, files: &LeaseFiles) -> Identity {
    Identity {
        cluster: files.cluster(),
        subject: files.subject().into(),
        host: keeper.host().name().into(),
        incarnation: keeper.host().incarnation(),
        salt: random(),
    }
}

enum Job {
    Create(LeaseRecord),
    Settle(LeaseRecord),
    Look,
    Fence(u64),
    Forget(u64),
}

fn start_worker(
    files: LeaseFiles,
    fence: Option<DiskFence>,
    answers: Sender<Input>,
) -> Result<SyncSender<Job>, StoreError> {
    let (jobs, queue) = mpsc::sync_channel(QUEUE_LIMIT);
    let subject = files.subject().to_owned();
    let work = move || {
        for job in queue {
            let event = match job {
                Job::Create(record) => Event::Created {
                    outcome: files.create(&record),
                    record,
                },
                Job::Settle(record) => Event::Created {
                    outcome: files.settle(&record),
                    record,
                },
                Job::Look => match files.last() {
                    Ok(last) => Event::Looked { last },
                    Err(_) => continue,
                },
                Job::Fence(epoch) => {
                    let done = fence.as_ref().map(|fence| fence.fence(epoch));
                    if let Some(Err(error)) = &done {
                        tracing::warn!(%error, "cannot fence at the target, waiting instead");
                    }
                    Event::Fenced {
                        epoch,
                        done: matches!(done, Some(Ok(()))),
                    }
                }
                Job::Forget(before) => {
                    files.forget(before);
                    continue;
                }
            };
            if answers.send(Input::Event(event.into())).is_err() {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("lease-files".into())
        .spawn(work)
        .map_err(StoreError::io("start the keeping of", subject))?;
    Ok(jobs)
}

struct Machine {
    lease: Lease,
    page: Arc<Page>,
    gate: Arc<LeaseGate>,
    record: Arc<Mutex<Option<LeaseRecord>>>,
    notify: Sender<Notice>,
    jobs: SyncSender<Job>,
    loopback: Sender<Input>,
    /// Who waits for the next thing that is certain.
    waiting: Option<Sender<Answer>>,
    refusal: Option<Refusal>,
    local: Arc<LocalLock>,
}

impl Machine {
    fn run(mut self, inputs: &Receiver<Input>, refused: &Sender<Refusal>) {
        let mut started = false;
        loop {
            let event = match inputs.recv_timeout(self.until_wake()) {
                Ok(Input::Event(event)) => *event,
                Ok(Input::Reply(reply)) => {
                    self.waiting = Some(reply);
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => Event::Tick,
                Ok(Input::Close) | Err(RecvTimeoutError::Disconnected) => return,
            };
            let actions = self.lease.step(boottime_us(), self.page.hold(), event);
            // The gate before anything else: nobody may learn of a pause while it is open.
            self.gate.set_term(self.lease.acting_term());
            *self.record.lock().unwrap_or_else(PoisonError::into_inner) =
                self.lease.record().cloned();
            for action in actions {
                if action == Action::Run {
                    started = true;
                    self.local
                        .mark(self.lease.record().map(|record| record.epoch));
                }
                self.perform(action);
            }
            if self.lease.ending().is_some() {
                return;
            }
            if let Some(refusal) = self.refusal.take()
                && !started
                && self.lease.record().is_none()
            {
                // The claim came to nothing, and there is nothing to keep.
                let _ = refused.send(refusal);
                return;
            }
        }
    }

    fn until_wake(&self) -> Duration {
        let wait_us = self
            .lease
            .wake_us(self.page.hold())
            .saturating_sub(boottime_us());
        // One more microsecond, so that the deadline has passed when we look.
        Duration::from_micros(wait_us.saturating_add(1)).min(NAP)
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Create(record) => self.ask_outcome(Job::Create(record.clone()), record),
            Action::Settle(record) => self.ask_outcome(Job::Settle(record.clone()), record),
            Action::Fence { epoch } => {
                if self.jobs.try_send(Job::Fence(epoch)).is_err() {
                    self.answer(Event::Fenced { epoch, done: false });
                }
            }
            // Both are asked for again some other time.
            Action::Look => drop(self.jobs.try_send(Job::Look)),
            Action::Forget { before } => drop(self.jobs.try_send(Job::Forget(before))),
            Action::Run => self.tell(Notice::Run, Some(Answer::Run)),
            Action::Pause => self.tell(Notice::Pause, None),
            Action::End(ending) => {
                self.tell(Notice::Ended(ending.clone()), Some(Answer::Ended(ending)));
            }
            Action::Refused(refusal) => self.refusal = Some(refusal),
        }
    }

    fn ask_outcome(&self, job: Job, record: LeaseRecord) {
        if self.jobs.try_send(job).is_err() {
            self.answer(Event::Created {
                record,
                outcome: Outcome::Unknown,
            });
        }
    }

    fn answer(&self, event: Event) {
        // We hold the receiver.
        let _ = self.loopback.send(Input::Event(event.into()));
    }

    fn tell(&mut self, notice: Notice, answer: Option<Answer>) {
        // Whoever stopped listening has its reasons; the gate speaks for itself.
        let _ = self.notify.send(notice);
        if let Some(answer) = answer
            && let Some(waiting) = self.waiting.take()
        {
            let _ = waiting.send(answer);
        }
    }
}
