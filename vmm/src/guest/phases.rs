//! From phase to phase; see the diagram of [`super`].

use std::sync::atomic::Ordering;

use shared_storage::clock::boottime_us;
use vmm_core::control::Happening;
use vmm_core::lifecycle::State;

use super::leaving::Leaving;
use super::{Guest, GuestError, Hold, Inner};
use crate::machine::{Built, Draft, Inspect, MachineState, Paused, Running, Saving};
use crate::memory;

/// Where the guest is in its life.
pub(super) enum Phase {
    Built(Built),
    Running(Running),
    Paused(Paused),
    Gone,
}

impl Phase {
    /// Its machine in whatever state.
    pub(super) fn machine(&self) -> Result<&dyn Inspect, GuestError> {
        match self {
            Self::Built(machine) => Ok(machine),
            Self::Running(machine) => Ok(machine),
            Self::Paused(machine) => Ok(machine),
            Self::Gone => Err(GuestError::Gone),
        }
    }
}

impl Guest {
    /// Run for the first time.
    pub fn start(&self) -> Result<(), GuestError> {
        let mut inner = self.lock();
        match std::mem::replace(&mut inner.phase, Phase::Gone) {
            Phase::Built(built) => {
                inner.phase = Phase::Running(built.start()?);
                self.show(State::Running);
                Ok(())
            }
            other => {
                inner.phase = other;
                Err(GuestError::NotBuilt("start the guest"))
            }
        }
    }

    /// Pour in what is known beforehand of the state of a guest that is to arrive.
    pub fn prepare(&self, draft: Draft) -> Result<(), GuestError> {
        match &self.lock().phase {
            Phase::Built(built) => Ok(built.prepare(draft)?),
            Phase::Gone => Err(GuestError::Gone),
            _ => Err(GuestError::NotBuilt("prepare the machine")),
        }
    }

    /// Pour in the state of a guest whose memory has been copied; it is paused afterwards, on
    /// behalf of [`Hold::Migration`].
    pub fn arrive(&self, state: MachineState) -> Result<(), GuestError> {
        let mut inner = self.lock();
        match std::mem::replace(&mut inner.phase, Phase::Gone) {
            Phase::Built(built) => {
                inner.phase = Phase::Paused(built.restore(state)?);
                self.shown.set_state(Some(State::Paused));
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
    /// or disks. It shows as paused once its processors stand still; the storage may take longer.
    pub fn hold(&self, who: Hold) -> Result<(), GuestError> {
        self.hold_locked(&mut self.lock(), who)
    }

    pub(super) fn hold_locked(&self, inner: &mut Inner, who: Hold) -> Result<(), GuestError> {
        match std::mem::replace(&mut inner.phase, Phase::Gone) {
            Phase::Running(running) => {
                self.accesses.call_home();
                let stopped = running.stop();
                self.show(State::Paused);
                self.tell_suspended(who);
                inner.phase = Phase::Paused(stopped.settle());
            }
            Phase::Gone => return Err(GuestError::Gone),
            other => {
                inner.phase = other;
                self.tell_suspended(who);
            }
        }
        if !inner.holds.contains(&who) {
            inner.holds.push(who);
        }
        Ok(())
    }

    fn tell_suspended(&self, who: Hold) {
        if who == Hold::Lease {
            self.events.tell(Happening::LeaseSuspended);
            if let Some(lease) = self.lease() {
                lease.stood_still(boottime_us());
            }
        }
    }

    /// `who` no longer minds that it runs. It runs once nobody minds; says whether it does.
    pub fn unhold(&self, who: Hold) -> Result<bool, GuestError> {
        let mut inner = self.lock();
        inner.holds.retain(|hold| *hold != who);
        if who == Hold::Migration {
            self.set_leaving(Leaving::No);
        }
        if !inner.holds.is_empty() {
            return Ok(false);
        }
        match std::mem::replace(&mut inner.phase, Phase::Gone) {
            Phase::Paused(paused) => match paused.resume() {
                Ok(running) => {
                    inner.phase = Phase::Running(running);
                    self.show(State::Running);
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

    /// Everything but memory, of a guest that was made to [`Guest::leave`].
    pub fn finish_save(&self, saving: Saving) -> Result<MachineState, GuestError> {
        match &self.lock().phase {
            Phase::Paused(paused) => Ok(paused.finish_save(saving)?),
            Phase::Gone => Err(GuestError::Gone),
            _ => Err(GuestError::NotPaused("save the guest")),
        }
    }

    /// Copy everything but memory; it must stand still.
    pub fn save(&self) -> Result<MachineState, GuestError> {
        match &self.lock().phase {
            Phase::Paused(paused) => Ok(paused.finish_save(paused.begin_save())?),
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
        if *self.leaving() != Leaving::No {
            return Err(GuestError::Leaving("reboot the guest"));
        }
        inner.phase.machine()?;
        self.shown.retire_machine();
        self.accesses.call_home();
        // The old machine goes before its memory does.
        inner.phase = Phase::Gone;
        between();
        memory::clear(self.memory()).map_err(|source| GuestError::Io {
            act: "clear guest memory",
            source,
        })?;
        let built = self.parts.boot(&self.reports)?;
        self.shown.set_machine(built.gauges());
        inner.phase = Phase::Running(built.start()?);
        self.reboots.fetch_add(1, Ordering::AcqRel);
        self.events.tell(Happening::Rebooted);
        if !inner.holds.is_empty()
            && let Phase::Running(running) = std::mem::replace(&mut inner.phase, Phase::Gone)
        {
            inner.phase = Phase::Paused(running.stop().settle());
        }
        Ok(())
    }

    /// Switch it off for good.
    pub fn end(&self) {
        let mut inner = self.lock();
        self.accesses.call_home();
        inner.phase = Phase::Gone;
        self.shown.set_state(None);
        self.events().close();
    }

    fn show(&self, state: State) {
        self.shown.set_state(Some(state));
        self.events.tell(Happening::State(state));
    }
}
