//! Between two hosts: from the switch-over of a migration until one side has the guest, nobody may
//! end or rebuild its machine.

use std::sync::PoisonError;

use super::phases::Phase;
use super::{Guest, GuestError, Hold};
use crate::machine::Saving;
use crate::notice::Notice;

/// A moment in the life of a guest: it is another one once the machine has asked for anything
/// or was rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    reports: u64,
    reboots: u64,
}

/// Whether the guest is between two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    /// It is ours.
    No,
    /// The switch-over is under way: nobody may rebuild or end the machine.
    Now,
    /// Another host has it, or may have.
    Left,
}

impl Guest {
    /// What tells a migration at the switch-over whether it may have the guest.
    pub fn moment(&self) -> Moment {
        Moment {
            reports: self.reports.told(),
            reboots: self.reboots(),
        }
    }

    /// Switch over: make it stand still on behalf of [`Hold::Migration`], unless it has asked
    /// to be reset or switched off `since`. Nobody can end or rebuild the machine from now on
    /// until [`Guest::unhold`] or [`Guest::left`]. Its state is being copied on return, for
    /// [`Guest::finish_save`].
    pub fn leave(&self, since: Moment) -> Result<Saving, GuestError> {
        let mut inner = self.lock();
        self.hold_locked(&mut inner, Hold::Migration)?;
        // What the machine said before it stood still has been counted by now.
        if self.moment() != since {
            return Err(GuestError::Ending);
        }
        inner.leaving = Leaving::Now;
        match &inner.phase {
            Phase::Paused(paused) => Ok(paused.begin_save()),
            _ => Err(GuestError::NotPaused("save the guest")),
        }
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
}
