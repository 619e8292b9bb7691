//! The guest: its machine in whatever state, shared by the driving loop, the API, the lease
//! and a migration.
//!
//! ```text
//!            built ──────► running ◄────────► paused
//!              │   start      │  hold/unhold     │
//!              └──arrive──────┼─────────────────►│
//!                             └───► gone ◄───────┘   end
//! ```
//!
//! Several parties may want the guest to stand still; it runs while none of them does.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use kvm_ioctls::Kvm;
use vmm_core::control::{Counters, Happening, Info};
use vmm_core::lifecycle::State;
use vmm_core::spec::Spec;

use crate::counters;
use crate::events::Events;
use crate::kvm::DirtyLog;
use crate::lease::Lease;
use crate::machine::{Backends, Built, Inspect, MachineError, MachineState, Paused, Running};
use crate::memory::{self, GuestMemory};
use crate::migration::departure::Departures;
use crate::notice::{Notice, Reports};
use crate::sampling::Sampler;
use crate::vcpu::cpuid::LeafMask;

/// Who wants the guest to stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// An operator, through the API.
    Operator,
    /// The lease has run out.
    Lease,
    /// A migration switches over.
    Migration,
}

/// A moment in the life of a guest: it is another one once the machine has asked for anything
/// or was rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    reports: u64,
    reboots: u64,
}

/// Why the guest does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// It has ended or moved.
    #[error("the guest is not here any more")]
    Gone,
    /// Only a running guest can do it.
    #[error("cannot {0}: the guest does not run; resume it first")]
    NotRunning(&'static str),
    /// Only a paused guest can do it.
    #[error("cannot {0}: the guest runs; pause it first")]
    NotPaused(&'static str),
    /// Only a machine that has not run can do it.
    #[error("cannot {0}: the machine has run already")]
    NotBuilt(&'static str),
    /// It is between two hosts.
    #[error("cannot {0}: the guest is switching over to another host; ask again, there or here")]
    Leaving(&'static str),
    /// It ends or reboots just now.
    #[error("the guest reboots or ends just now; try again")]
    Ending,
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The operating system.
    #[error("cannot {act}: {source}")]
    Io {
        /// What was to be done.
        act: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// What every machine of this guest is made from.
pub struct Parts {
    /// KVM.
    pub kvm: Kvm,
    /// What the guest is made of.
    pub spec: Spec,
    /// Memory, disks, taps, console.
    pub backends: Backends,
    /// Processor features it may see.
    pub masks: Vec<LeafMask>,
    /// Where the machine reports to.
    pub notices: Sender<Notice>,
    /// Epoch of the lease; none without a datastore, or before it was handed over.
    pub epoch: Option<u64>,
}

enum Phase {
    Built(Built),
    Running(Running),
    Paused(Paused),
    Gone,
}

struct Inner {
    phase: Phase,
    holds: Vec<Hold>,
    leaving: Leaving,
}

/// Whether the guest is between two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// It is ours.
    No,
    /// The switch-over is under way: nobody may rebuild or end the machine.
    Now,
    /// Another host has it, or may have.
    Left,
}

/// The guest.
pub struct Guest {
    parts: Parts,
    inner: Mutex<Inner>,
    /// [`Inner::leaving`] has changed.
    settled: Condvar,
    reports: Reports,
    events: Events,
    reboots: AtomicU64,
    /// What the machines before the present one have done.
    past: Mutex<Counters>,
    sampler: Mutex<Sampler>,
    migrating: AtomicBool,
    departures: Departures,
    /// Epoch of the lease; 0 without one.
    epoch: AtomicU64,
    lease: OnceLock<Arc<Lease>>,
}

impl Guest {
    /// A guest at the first instruction of its kernel.
    pub fn boot(parts: Parts) -> Result<Arc<Self>, MachineError> {
        let reports = Reports::new(parts.notices.clone());
        let built = parts.boot(&reports)?;
        Ok(Self::with(parts, built, reports))
    }

    /// A guest that a state will be poured into: the target of a migration.
    pub fn empty(parts: Parts) -> Result<Arc<Self>, MachineError> {
        let Parts {
            kvm,
            spec,
            backends,
            masks,
            notices,
            ..
        } = &parts;
        let reports = Reports::new(notices.clone());
        let built = Built::new(kvm, spec, backends, masks, &reports)?;
        Ok(Self::with(parts, built, reports))
    }

    fn with(parts: Parts, built: Built, reports: Reports) -> Arc<Self> {
        Arc::new(Self {
            epoch: AtomicU64::new(parts.epoch.unwrap_or(0)),
            lease: OnceLock::new(),
            parts,
            inner: Mutex::new(Inner {
                phase: Phase::Built(built),
                holds: Vec::new(),
                leaving: Leaving::No,
            }),
            settled: Condvar::new(),
            reports,
            events: Events::default(),
            reboots: AtomicU64::new(0),
            past: Mutex::default(),
            sampler: Mutex::default(),
            migrating: AtomicBool::new(false),
            departures: Departures::default(),
        })
    }

    /// KVM.
    pub fn kvm(&self) -> &Kvm {
        &self.parts.kvm
    }

    /// The lease was handed over to us under this epoch.
    pub fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Release);
    }

    /// Its migrations to other hosts.
    pub fn departures(&self) -> &Departures {
        &self.departures
    }

    /// What it is made of.
    pub fn spec(&self) -> &Spec {
        &self.parts.spec
    }

    /// Its memory, which stays the same as it reboots.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.parts.backends.memory
    }

    /// Memory, disks, taps, console.
    pub fn backends(&self) -> &Backends {
        &self.parts.backends
    }

    /// The right to run it; none without a datastore.
    pub fn lease(&self) -> Option<&Arc<Lease>> {
        self.lease.get()
    }

    /// It runs under this lease from now on.
    pub fn set_lease(&self, lease: Arc<Lease>) {
        if let Some(epoch) = lease.epoch() {
            self.set_epoch(epoch);
        }
        // A guest has one lease in its life; a second would be the same one.
        let _ = self.lease.set(lease);
    }

    /// Where things that end it are reported.
    pub fn notices(&self) -> &Sender<Notice> {
        &self.parts.notices
    }

    /// What happens to it.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// How often it was rebooted in place.
    pub fn reboots(&self) -> u64 {
        self.reboots.load(Ordering::Acquire)
    }

    /// Run for the first time.
    pub fn start(&self) -> Result<(), GuestError> {
        let mut inner = self.lock();
        match std::mem::replace(&mut inner.phase, Phase::Gone) {
            Phase::Built(built) => {
                inner.phase = Phase::Running(built.start()?);
                self.events.tell(Happening::State(State::Running));
                Ok(())
            }
            other => {
                inner.phase = other;
                Err(GuestError::NotBuilt("start the guest"))
            }
        }
    }

    /// Pour in the state of a guest whose memory has been copied; it is paused afterwards, on
    /// behalf of [`Hold::Migration`].
    pub fn arrive(&self, state: MachineState) -> Result<(), GuestError> {
        let mut inner = self.lock();
        match std::mem::replace(&mut inner.phase, Phase::Gone) {
            Phase::Built(built) => {
                inner.phase = Phase::Paused(built.restore(state)?);
                inner.holds.push(Hold::Migration);
                Ok(())
            }
            other => {
                inner.phase = other;
                Err(GuestError::NotBuilt("pour a state in"))
            }
        }
    }

    /// Make it stand still on behalf of `who`: when this returns nothing touches its memory
    /// or disks.
    pub fn hold(&self, who: Hold) -> Result<(), GuestError> {
        self.hold_locked(&mut self.lock(), who)
    }

    fn hold_locked(&self, inner: &mut Inner, who: Hold) -> Result<(), GuestError> {
        match std::mem::replace(&mut inner.phase, Phase::Gone) {
            Phase::Running(running) => {
                inner.phase = Phase::Paused(running.pause());
                self.events.tell(Happening::State(State::Paused));
            }
            Phase::Gone => return Err(GuestError::Gone),
            other => inner.phase = other,
        }
        if !inner.holds.contains(&who) {
            inner.holds.push(who);
        }
        Ok(())
    }

    /// `who` no longer minds that it runs. It runs once nobody minds; says whether it does.
    pub fn unhold(&self, who: Hold) -> Result<bool, GuestError> {
        let mut inner = self.lock();
        inner.holds.retain(|hold| *hold != who);
        if who == Hold::Migration {
            inner.leaving = Leaving::No;
            self.settled.notify_all();
        }
        if !inner.holds.is_empty() {
            return Ok(false);
        }
        match std::mem::replace(&mut inner.phase, Phase::Gone) {
            Phase::Paused(paused) => match paused.resume() {
                Ok(running) => {
                    inner.phase = Phase::Running(running);
                    self.events.tell(Happening::State(State::Running));
                    Ok(true)
                }
                Err(failed) => {
                    let (paused, error) = *failed;
                    inner.phase = Phase::Paused(paused);
                    inner.holds.push(who);
                    Err(error.into())
                }
            },
            Phase::Gone => Err(GuestError::Gone),
            other => {
                let runs = matches!(other, Phase::Running(_));
                inner.phase = other;
                Ok(runs)
            }
        }
    }

    /// Does `who` want it to stand still?
    pub fn is_held_by(&self, who: Hold) -> bool {
        self.lock().holds.contains(&who)
    }

    /// What tells a migration at the switch-over whether it may have the guest.
    pub fn moment(&self) -> Moment {
        Moment {
            reports: self.reports.told(),
            reboots: self.reboots(),
        }
    }

    /// Switch over: make it stand still on behalf of [`Hold::Migration`], unless it has asked
    /// to be reset or switched off `since`. Nobody can end or rebuild the machine from now on
    /// until [`Guest::unhold`] or [`Guest::left`].
    pub fn leave(&self, since: Moment) -> Result<(), GuestError> {
        let mut inner = self.lock();
        self.hold_locked(&mut inner, Hold::Migration)?;
        // What the machine said before it stood still has been counted by now.
        if self.moment() != since {
            return Err(GuestError::Ending);
        }
        inner.leaving = Leaving::Now;
        Ok(())
    }

    /// The switch-over is over: another host has the guest, or may have it.
    pub fn left(&self) {
        self.lock().leaving = Leaving::Left;
        self.settled.notify_all();
    }

    /// Wait until it is not between two hosts; does another host have it, for all we know?
    pub fn settle(&self) -> bool {
        let settled = self
            .settled
            .wait_while(self.lock(), |inner| inner.leaving == Leaving::Now);
        settled.unwrap_or_else(PoisonError::into_inner).leaving == Leaving::Left
    }

    /// An operator wants `notice` acted on, to do `act`.
    pub fn ask(&self, act: &'static str, notice: Notice) -> Result<(), GuestError> {
        let inner = self.lock();
        if inner.leaving == Leaving::Now {
            return Err(GuestError::Leaving(act));
        }
        let told = self.parts.notices.send(notice);
        told.map_err(|_| GuestError::Gone)
    }

    /// Copy everything but memory; it must stand still.
    pub fn save(&self) -> Result<MachineState, GuestError> {
        match &self.lock().phase {
            Phase::Paused(paused) => Ok(paused.save()?),
            Phase::Built(built) => Ok(built.save()?),
            Phase::Gone => Err(GuestError::Gone),
            Phase::Running(_) => Err(GuestError::NotPaused("save the guest")),
        }
    }

    /// Press the power button; the guest decides what it does.
    pub fn press_power_button(&self) -> Result<(), GuestError> {
        let act = "press the power button";
        match &self.lock().phase {
            Phase::Running(running) => running
                .press_power_button()
                .map_err(|source| GuestError::Io { act, source }),
            Phase::Gone => Err(GuestError::Gone),
            _ => Err(GuestError::NotRunning(act)),
        }
    }

    /// A fresh machine in place of this one; memory is cleared, disks and taps stay open.
    /// `between` is called when the old machine has said its last and the new one nothing.
    pub fn reboot(&self, between: impl FnOnce()) -> Result<(), GuestError> {
        let mut inner = self.lock();
        if inner.leaving != Leaving::No {
            return Err(GuestError::Leaving("reboot the guest"));
        }
        self.past().add(&counters::of(inner.machine()?));
        // The old machine goes before its memory does.
        inner.phase = Phase::Gone;
        between();
        memory::clear(self.memory()).map_err(|source| GuestError::Io {
            act: "clear guest memory",
            source,
        })?;
        let built = self.parts.boot(&self.reports)?;
        inner.phase = Phase::Running(built.start()?);
        self.reboots.fetch_add(1, Ordering::AcqRel);
        self.events.tell(Happening::Rebooted);
        if !inner.holds.is_empty()
            && let Phase::Running(running) = std::mem::replace(&mut inner.phase, Phase::Gone)
        {
            inner.phase = Phase::Paused(running.pause());
        }
        Ok(())
    }

    /// Switch it off for good.
    pub fn end(&self) {
        self.lock().phase = Phase::Gone;
    }

    /// Let its devices tell the outside world that it has just arrived here.
    pub fn announce(&self) -> Result<(), GuestError> {
        Ok(self.inspect(|machine| machine.announce())??)
    }

    /// A migration begins or ends; only changes what [`Guest::state`] says.
    pub fn set_migrating(&self, migrating: bool) {
        self.migrating.store(migrating, Ordering::Release);
        if let Some(state) = self.state() {
            self.events.tell(Happening::State(state));
        }
    }

    /// What it does now; `None` when it has ended.
    pub fn state(&self) -> Option<State> {
        match &self.lock().phase {
            Phase::Built(_) => Some(State::Built),
            Phase::Running(_) if self.migrating.load(Ordering::Acquire) => Some(State::Migrating),
            Phase::Running(_) => Some(State::Running),
            Phase::Paused(_) => Some(State::Paused),
            Phase::Gone => None,
        }
    }

    /// The dirty log of its present machine; see [`Guest::reboots`].
    pub fn dirty_log(&self) -> Result<DirtyLog, GuestError> {
        self.inspect(|machine| machine.vm().dirty_log())
    }

    /// Look at its machine in whatever state.
    pub fn inspect<T>(&self, look: impl FnOnce(&dyn Inspect) -> T) -> Result<T, GuestError> {
        Ok(look(self.lock().machine()?))
    }

    /// What it has done since its VMM started.
    pub fn counters(&self) -> Result<Counters, GuestError> {
        let inner = self.lock();
        let mut counters = self.past().clone();
        counters.add(&counters::of(inner.machine()?));
        drop(inner);
        let mut sampler = self.sampler.lock().unwrap_or_else(PoisonError::into_inner);
        counters.memory = sampler.step(self.memory(), Instant::now());
        Ok(counters)
    }

    fn past(&self) -> MutexGuard<'_, Counters> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an operator wants to know first.
    pub fn info(&self) -> Result<Info, GuestError> {
        let spec = self.spec();
        Ok(Info {
            name: spec.name.clone(),
            state: self.state().ok_or(GuestError::Gone)?,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            cpus: spec.cpus,
            memory_mib: spec.memory_mib,
            epoch: Some(self.epoch.load(Ordering::Acquire)).filter(|epoch| *epoch > 0),
            reboots: self.reboots(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn machine(&self) -> Result<&dyn Inspect, GuestError> {
        match &self.phase {
            Phase::Built(machine) => Ok(machine),
            Phase::Running(machine) => Ok(machine),
            Phase::Paused(machine) => Ok(machine),
            Phase::Gone => Err(GuestError::Gone),
        }
    }
}

impl Parts {
    fn boot(&self, reports: &Reports) -> Result<Built, MachineError> {
        Built::boot(&self.kvm, &self.spec, &self.backends, &self.masks, reports)
    }
}
