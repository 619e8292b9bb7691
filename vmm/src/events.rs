//! What happens to the guest, for whoever listens.

use shared_storage::clock::boottime_us;
use tokio::sync::broadcast;
use vmm_core::control::{Event, Happening};

/// Events that a slow listener may fall behind before it loses some.
const BACKLOG: usize = 64;

/// Spreads events to all listeners. Clones are handles to the same hub.
#[derive(Debug, Clone)]
pub struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }
}

impl Events {
    /// It happened just now.
    pub fn tell(&self, what: Happening) {
        // Nobody may be listening.
        let _ = self.0.send(event(what));
    }

    /// Does anybody listen?
    pub fn are_heard(&self) -> bool {
        self.0.receiver_count() > 0
    }

    /// Hear all from now on.
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}

/// It happens now.
pub fn event(what: Happening) -> Event {
    Event {
        boottime_us: boottime_us(),
        what,
    }
}
