//! The gate of a guest that runs under a lease: two loads and a clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::clock::boottime_us;
use crate::gate::{Gate, Shut};
use crate::page::Page;

/// No term has this number: terms have 24 bits.
const NO_TERM: u32 = u32::MAX;

/// Open while the host may act and the guest's lease belongs to the host's present term.
#[derive(Debug)]
pub struct LeaseGate {
    page: Arc<Page>,
    term: AtomicU32,
}

impl LeaseGate {
    /// A gate that is shut until a term is set.
    pub(super) fn new(page: Arc<Page>) -> Self {
        Self {
            page,
            term: AtomicU32::new(NO_TERM),
        }
    }

    /// Opens the gate for a term, or shuts it.
    pub(super) fn set_term(&self, term: Option<u32>) {
        self.term.store(term.unwrap_or(NO_TERM), Ordering::Release);
    }

    /// Until when it is open unless heartbeats go on, in microseconds of the boottime clock;
    /// none when it is shut.
    pub fn open_until_us(&self) -> Option<u64> {
        let hold = self.page.hold();
        (hold.term() == self.term.load(Ordering::Acquire)).then(|| hold.deadline_us())
    }

    /// When the host's time ran out, on the boottime clock; none while it may act.
    pub fn ran_out_us(&self) -> Option<u64> {
        let hold = self.page.hold();
        (!hold.is_live(boottime_us())).then(|| hold.deadline_us())
    }
}

impl Gate for LeaseGate {
    #[inline]
    fn pass(&self) -> Result<(), Shut> {
        let term = self.term.load(Ordering::Acquire);
        if self.page.hold().covers(boottime_us(), term) {
            Ok(())
        } else {
            Err(Shut)
        }
    }
}
