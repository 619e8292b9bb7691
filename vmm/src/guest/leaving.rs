//! Between two hosts: from the switch-over of a migration until one side has the guest, nobody may
//! end or rebuild its machine.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::phases::Phase;
use super::{Guest, GuestError, Hold, Inner};
use crate::drive;
use crate::machine::Saving;
use crate::notice::Notice;

/// Whoever is to leave and does not stand still by then waits for a storage that does not answer.
const STAND_STILL_LIMIT: Duration = Duration::from_secs(1);

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
    /// It is being made to stand still, which takes as long as the storage does.
    Soon,
    /// The switch-over is under way: nobody may rebuild or end the machine.
    Now,
    /// Another host has it, or may have.
    Left,
}

impl Leaving {
    fn is_on_its_way(self) -> bool {
        matches!(self, Self::Soon | Self::Now)
    }
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
        self.set_leaving(Leaving::Soon);
        let saving = self.begin_to_leave(&mut inner, since);
        let leaving = saving.as_ref().map_or(Leaving::No, |_| Leaving::Now);
        self.set_leaving(leaving);
        saving
    }

    fn begin_to_leave(&self, inner: &mut Inner, since: Moment) -> Result<Saving, GuestError> {
        self.hold_locked(inner, Hold::Migration)?;
        // What the machine said before it stood still has been counted by now.
        if self.moment() != since {
            return Err(GuestError::Ending);
        }
        match &inner.phase {
            Phase::Paused(paused) => Ok(paused.begin_save()),
            _ => Err(GuestError::NotPaused("save the guest")),
        }
    }

    /// The switch-over is over: another host has the guest, or may have it.
    pub fn left(&self) {
        self.set_leaving(Leaving::Left);
    }

    /// Wait until it is not between two hosts; does another host have it, for all we know?
    pub fn settle(&self) -> bool {
        let settled = self
            .settled
            .wait_while(self.leaving(), |leaving| leaving.is_on_its_way());
        *settled.unwrap_or_else(PoisonError::into_inner) == Leaving::Left
    }

    /// An operator wants `notice` acted on, to do `act`.
    pub fn ask(&self, act: &'static str, notice: Notice) -> Result<(), GuestError> {
        let soon = |leaving: &mut Leaving| *leaving == Leaving::Soon;
        let waited = self
            .settled
            .wait_timeout_while(self.leaving(), STAND_STILL_LIMIT, soon);
        let (leaving, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *leaving == Leaving::Now {
            return Err(GuestError::Leaving(act));
        }
        let is_the_end = notice == Notice::Off;
        let told = self.parts.notices.send(notice);
        told.map_err(|_| GuestError::Gone)?;
        if is_the_end {
            drive::end_soon();
        }
        Ok(())
    }

    pub(super) fn leaving(&self) -> MutexGuard<'_, Leaving> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_leaving(&self, leaving: Leaving) {
        *self.leaving() = leaving;
        self.settled.notify_all();
    }
}
