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

mod error;
mod leaving;
mod phases;
mod shown;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use kvm_ioctls::Kvm;
use vmm_core::control::{Counters, Happening, Info, MemorySample};
use vmm_core::lifecycle::State;
use vmm_core::spec::Spec;

use crate::events::Events;
use crate::kvm::DirtyLog;
use crate::lease::Lease;
use crate::machine::{Backends, Built, Inspect, MachineError};
use crate::memory::GuestMemory;
use crate::migration::departure::Departures;
use crate::notice::{Notice, Reports};
use crate::sampling::accesses::{AccessSampler, Bar};
use crate::sampling::writes::WriteSampler;
use crate::vcpu::cpuid::LeafMask;
pub use error::GuestError;
use leaving::Leaving;
pub use leaving::Moment;
use phases::Phase;
use shown::Shown;

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

struct Inner {
    phase: Phase,
    holds: Vec<Hold>,
}

/// The guest.
pub struct Guest {
    /// Goes first: a machine must not go while one of its pages is away.
    accesses: AccessSampler,
    parts: Parts,
    shown: Shown,
    /// Held for as long as it takes to get from one phase to the next.
    inner: Mutex<Inner>,
    /// Changes under the lock of `inner`, but for [`Guest::left`].
    leaving: Mutex<Leaving>,
    /// `leaving` has changed.
    settled: Condvar,
    reports: Reports,
    events: Events,
    reboots: AtomicU64,
    writes: Mutex<WriteSampler>,
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
            accesses: AccessSampler::new(parts.backends.memory.clone(), parts.spec.hugepages),
            parts,
            shown: Shown::new(built.gauges()),
            inner: Mutex::new(Inner {
                phase: Phase::Built(built),
                holds: Vec::new(),
            }),
            leaving: Mutex::new(Leaving::No),
            settled: Condvar::new(),
            reports,
            events: Events::default(),
            reboots: AtomicU64::new(0),
            writes: Mutex::default(),
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
        match self.shown.state() {
            Some(State::Running) if self.migrating.load(Ordering::Acquire) => {
                Some(State::Migrating)
            }
            state => state,
        }
    }

    /// The dirty log of its present machine; see [`Guest::reboots`].
    pub fn dirty_log(&self) -> Result<DirtyLog, GuestError> {
        self.inspect(|machine| machine.vm().dirty_log())
    }

    /// Look at its machine in whatever state.
    pub fn inspect<T>(&self, look: impl FnOnce(&dyn Inspect) -> T) -> Result<T, GuestError> {
        Ok(look(self.lock().phase.machine()?))
    }

    /// What it has done since its VMM started.
    pub fn counters(&self) -> Result<Counters, GuestError> {
        let mut counters = self.shown.counters().ok_or(GuestError::Gone)?;
        counters.memory = self.sample_memory(Instant::now());
        Ok(counters)
    }

    /// Look at how it uses its memory, as far as that is due at `now`; what is known of it.
    pub fn sample_memory(&self, now: Instant) -> Option<MemorySample> {
        let mut writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        let sample = writes.step(self.memory(), now);
        if self.accesses.conclude(now) {
            let pages = self.accesses.draw(|page| writes.watches(page));
            // Nobody makes it stand still while the lock is held. Who holds it may be long.
            if let Ok(inner) = self.inner.try_lock()
                && matches!(inner.phase, Phase::Running(_))
            {
                self.accesses.set_aside(&pages, now);
            }
        }
        sample.map(|sample| MemorySample {
            accessed: self.accesses.told(),
            cost_us: sample.cost_us + self.accesses.cost().as_micros() as u64,
            ..sample
        })
    }

    /// All of its memory is where it belongs for as long as the answer lives.
    pub fn keep_memory_home(&self) -> Bar<'_> {
        self.accesses.bar()
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

impl Parts {
    fn boot(&self, reports: &Reports) -> Result<Built, MachineError> {
        Built::boot(&self.kvm, &self.spec, &self.backends, &self.masks, reports)
    }
}
