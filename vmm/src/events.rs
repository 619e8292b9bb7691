//! What happens to the guest, for whoever listens.

use std::sync::{Arc, PoisonError, RwLock};

use shared_storage::clock::boottime_us;
use tokio::sync::broadcast;
use vmm_core::control::{Event, Happening};

/// Events that a slow listener may fall behind before it loses some.
const BACKLOG: usize = 64;

/// Spreads events to all listeners. Clones are handles to the same hub.
#[derive(Debug, Clone)]
pub struct Events(Arc<RwLock<Option<broadcast::Sender<Event>>>>);

impl Default for Events {
    fn default() -> Self {
        Self(Arc::new(RwLock::new(Some(broadcast::Sender::new(BACKLOG)))))
    }
}

impl Events {
    /// It happened just now.
    pub fn tell(&self, what: Happening) {
        // Nobody may be listening.
        let _ = self.hub().map(|hub| hub.send(event(what)));
    }

    /// Does anybody listen?
    pub fn are_heard(&self) -> bool {
        self.hub().is_some_and(|hub| hub.receiver_count() > 0)
    }

    /// Hear all from now on; after [`Events::close`] that is nothing.
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        let hub = self.hub();
        hub.unwrap_or_else(|| broadcast::Sender::new(1)).subscribe()
    }

    /// There is nothing more to tell: whoever has heard all of it need not listen any longer.
    pub fn close(&self) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    fn hub(&self) -> Option<broadcast::Sender<Event>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// It happens now.
pub fn event(what: Happening) -> Event {
    Event {
        boottime_us: boottime_us(),
        what,
    }
}
