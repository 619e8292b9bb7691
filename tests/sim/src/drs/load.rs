//! How the load of a guest changes over days.

use cluster_core::model::Guest;

use super::MINUTES_PER_DAY;
use crate::rng::Rng;

/// How a guest's load behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// Up by day, down by night, at its own hour.
    Diurnal,
    /// Mostly idle; every few hours at full speed for some minutes.
    Bursts,
    /// About the same, but never still.
    Noise,
    /// Up and down with the period of a planner that reacts too fast.
    Sawtooth,
}

impl Shape {
    /// All there are, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Diurnal, Self::Bursts, Self::Noise, Self::Sawtooth];
}

/// The load of one guest.
pub struct Load {
    pub shape: Shape,
    phase: u64,
    peak_mcpu: u64,
    rng: Rng,
    burst_left: u64,
}

impl Load {
    /// A guest's load, of one of these shapes by chance.
    pub fn new(rng: &mut Rng, guest: &Guest, shapes: &[Shape]) -> Self {
        Self {
            shape: *rng.pick(shapes),
            phase: rng.below(MINUTES_PER_DAY),
            peak_mcpu: guest.configured.mcpu,
            rng: rng.split(),
            burst_left: 0,
        }
    }

    /// What it wants in this minute.
    pub fn wants(&mut self, minute: u64) -> u64 {
        let at = minute + self.phase;
        let permille = match self.shape {
            Shape::Diurnal => {
                let of_day = at % MINUTES_PER_DAY;
                let from_noon = of_day.abs_diff(MINUTES_PER_DAY / 2);
                1000 - from_noon * 900 / (MINUTES_PER_DAY / 2)
            }
            Shape::Bursts => {
                if self.burst_left == 0 && self.rng.below(180) == 0 {
                    self.burst_left = self.rng.between(1, 20);
                }
                self.burst_left = self.burst_left.saturating_sub(1);
                if self.burst_left > 0 { 1000 } else { 80 }
            }
            Shape::Noise => 350 + self.rng.below(300),
            Shape::Sawtooth => at % 8 * 130,
        };
        self.peak_mcpu * permille / 1000
    }
}
