//! What the parts of a machine tell whoever drives it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;

/// Something that the driving loop has to act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The guest switched itself off, or an operator pulled its plug.
    Off,
    /// The guest wants to be reset, or an operator does.
    Reset,
    /// The guest's kernel has panicked.
    Panicked,
    /// A processor gave up (triple fault).
    Crashed,
    /// This side cannot run the guest any further; one line says why.
    Failed(String),
    /// The guest runs on another host now.
    Moved,
    /// The right to run the guest is gone for good; one line says where to.
    LeaseLost(String),
}

impl Notice {
    /// Does it say where the guest is, and not what to do with the machine here?
    pub fn is_verdict(&self) -> bool {
        matches!(self, Self::Moved | Self::LeaseLost(_))
    }
}

/// Where the machine reports to. Counts, so that a migration sees what nobody has acted on yet.
#[derive(Clone)]
pub struct Reports {
    to: Sender<Notice>,
    told: Arc<AtomicU64>,
}

impl Reports {
    /// Reports go `to` there.
    pub fn new(to: Sender<Notice>) -> Self {
        let told = Arc::default();
        Self { to, told }
    }

    /// Tell it. Nobody listens only when the machine is ending anyway.
    pub fn tell(&self, notice: Notice) {
        // Before the processor that tells it can be seen to stand still.
        self.told.fetch_add(1, Ordering::SeqCst);
        let _ = self.to.send(notice);
    }

    /// How many there were.
    pub fn told(&self) -> u64 {
        self.told.load(Ordering::SeqCst)
    }
}
