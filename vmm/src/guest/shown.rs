//! What can be said of the guest at once, whoever is moving it from phase to phase meanwhile and
//! however long that takes: a storage that does not answer keeps nobody from asking.

use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_core::control::Counters;
use vmm_core::lifecycle::State;

use crate::counters::Gauges;

/// The guest as it shows.
pub(super) struct Shown(Mutex<Face>);

struct Face {
    /// None when it has ended.
    state: Option<State>,
    /// What the machines before the present one have done.
    past: Counters,
    present: Gauges,
}

impl Shown {
    /// A guest whose machine is built.
    pub(super) fn new(machine: Gauges) -> Self {
        Self(Mutex::new(Face {
            state: Some(State::Built),
            past: Counters::default(),
            present: machine,
        }))
    }

    pub(super) fn state(&self) -> Option<State> {
        self.lock().state
    }

    pub(super) fn set_state(&self, state: Option<State>) {
        self.lock().state = state;
    }

    /// What it has done since its VMM started; none when it has ended.
    pub(super) fn counters(&self) -> Option<Counters> {
        let face = self.lock();
        face.state?;
        let mut counters = face.past.clone();
        counters.add(&face.present.read());
        Some(counters)
    }

    /// Its machine is about to go, and another will be made.
    pub(super) fn retire_machine(&self) {
        let mut face = self.lock();
        let done = std::mem::take(&mut face.present).read();
        face.past.add(&done);
    }

    /// This is its machine now.
    pub(super) fn set_machine(&self, machine: Gauges) {
        self.lock().present = machine;
    }

    fn lock(&self) -> MutexGuard<'_, Face> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
