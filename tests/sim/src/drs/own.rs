//! What the hosts do for themselves beside their guests: never quite the same, and much more of
//! it for a while each night.

use cluster_core::demand::Smoothing;
use cluster_core::model::Resources;
use cluster_core::own_needs::{OwnNeeds, for_guests};

use super::{MINUTE_US, MINUTES_PER_DAY};
use crate::rng::Rng;

/// An agent and some daemons keep so much of a core busy, in thousandths.
const USUAL_MCPU: u64 = 150;
const NOISE_MCPU: u64 = 300;
/// A backup takes so much ...
const NIGHTLY_MCPU: u64 = 3000;
/// ... for so long.
const NIGHTLY_MINUTES: u64 = 40;

/// One host's own work, and what its agent makes of it.
pub struct Own {
    machine: Resources,
    needs: OwnNeeds,
    phase: u64,
    rng: Rng,
    used: Resources,
}

impl Own {
    /// Of a machine of this size.
    pub fn new(machine: Resources, rng: &mut Rng) -> Self {
        Self {
            machine,
            needs: OwnNeeds::default(),
            phase: rng.below(MINUTES_PER_DAY),
            rng: rng.split(),
            used: Resources::default(),
        }
    }

    /// Works for a minute and observes that; whether it goes on changing.
    pub fn live(&mut self, minute: u64, changes: bool) {
        if changes {
            let nightly = (minute + self.phase) % MINUTES_PER_DAY < NIGHTLY_MINUTES;
            let more = if nightly { NIGHTLY_MCPU } else { 0 };
            self.used.mcpu = USUAL_MCPU + self.rng.below(NOISE_MCPU) + more;
        }
        let now_ms = minute * (MINUTE_US / 1000);
        self.needs.observe(now_ms, self.used, &Smoothing::default());
    }

    /// What is left for guests in truth.
    pub fn left(&self) -> Resources {
        self.machine.minus(self.used)
    }

    /// What the leader plans with.
    pub fn capacity(&self) -> Resources {
        let own = self.needs.told().unwrap_or_default();
        for_guests(self.machine, self.machine, own)
    }
}
