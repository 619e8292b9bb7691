//! What happens to the world in one history: its timings, its size, its faults.

use storage_core::timing::Timing;

use crate::rng::Rng;

/// When faults end, in microseconds of true time.
pub const HEAL_US: u64 = 8_000_000;

/// Between two events of a quiet history.
pub const QUIET_US: u64 = 800_000;

/// Something that goes wrong, or that somebody wants.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// The host loses power and boots again after this long, if it ever does.
    PowerCut { host: usize, off_us: Option<u64> },
    /// The agent dies and is started again after this long.
    AgentCrash { host: usize, off_us: u64 },
    /// The guest's process dies.
    GuestCrash { host: usize },
    /// Processes stand still while their clock runs on.
    Freeze {
        host: usize,
        agent: bool,
        guest: bool,
        for_us: u64,
    },
    /// Everything stands still, the clock too.
    Stop { host: usize, for_us: u64 },
    /// The clock jumps, forward or back.
    ClockJump { host: usize, by_us: i64 },
    /// The host's way to the storage is cut.
    Cut { host: usize, for_us: u64 },
    /// The storage answers nobody.
    Outage { for_us: u64 },
    /// The guest is to move to this host.
    Migrate { to: usize },
    /// The guest is shut down and started again by whoever comes first.
    Release,
}

/// One history's conditions.
#[derive(Debug, Clone)]
pub struct Plan {
    pub timing: Timing,
    pub hosts: usize,
    /// The target fences.
    pub fenced: bool,
    /// Fencing fails now and then.
    pub fence_fails: bool,
    /// Writes may live longer than `D`, and be issued later than `S` after they were let
    /// through. Only sound where the target fences.
    pub late_writes: bool,
    /// Clocks may stand still or jump. Only sound where the target fences.
    pub clock_faults: bool,
    /// Nothing happens but outages that all hosts see.
    pub outages_only: bool,
    /// In thousandths: how often a request or its answer is slow or lost.
    pub trouble: u64,
    pub faults: Vec<(u64, Fault)>,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(rng: &mut Rng) -> Self {
        let fenced = rng.chance(400);
        let sure_fence = fenced && rng.chance(700);
        let outages_only = rng.chance(100);
        let mut plan = Self {
            timing: timing(rng),
            hosts: rng.between(2, 4) as usize,
            fenced,
            fence_fails: fenced && !sure_fence,
            late_writes: sure_fence && rng.chance(500),
            clock_faults: sure_fence && rng.chance(500),
            outages_only,
            trouble: if outages_only {
                0
            } else {
                *rng.pick(&[0, 10, 50, 150])
            },
            faults: Vec::new(),
        };
        for _ in 0..rng.between(1, 10) {
            let at_us = rng.between(300_000, HEAL_US);
            let fault = plan.fault(rng);
            plan.faults.push((at_us, fault));
        }
        if !outages_only && rng.chance(150) {
            // One host stays off for good: what it held must be had by others all the same.
            let host = rng.below(plan.hosts as u64) as usize;
            let at_us = rng.between(300_000, HEAL_US);
            let fault = Fault::PowerCut { host, off_us: None };
            plan.faults.push((at_us, fault));
        }
        plan
    }

    /// A short life without any trouble of its own: the guest starts, moves there and back, is shut
    /// down and started again.
    pub fn quiet(rng: &mut Rng) -> Self {
        let fenced = rng.chance(500);
        let faults = [
            Fault::Migrate { to: 1 },
            Fault::Migrate { to: 0 },
            Fault::Release,
        ];
        Self {
            timing: timing(rng),
            hosts: 2,
            fenced,
            fence_fails: fenced && rng.chance(300),
            late_writes: false,
            clock_faults: false,
            outages_only: false,
            trouble: 0,
            faults: (1..).map(|turn| turn * QUIET_US).zip(faults).collect(),
        }
    }

    fn fault(&self, rng: &mut Rng) -> Fault {
        let host = rng.below(self.hosts as u64) as usize;
        let for_us = self.span(rng);
        if self.outages_only {
            return Fault::Outage { for_us };
        }
        match rng.below(12) {
            0 => Fault::PowerCut {
                host,
                off_us: Some(for_us),
            },
            1 => Fault::AgentCrash {
                host,
                off_us: for_us,
            },
            2 => Fault::GuestCrash { host },
            3 | 4 => {
                let (agent, guest) = *rng.pick(&[(true, true), (true, false), (false, true)]);
                Fault::Freeze {
                    host,
                    agent,
                    guest,
                    for_us,
                }
            }
            5 | 6 if self.clock_faults => {
                if rng.chance(500) {
                    Fault::Stop { host, for_us }
                } else {
                    let by_us = for_us.cast_signed();
                    let by_us = if rng.chance(500) { by_us } else { -by_us };
                    Fault::ClockJump { host, by_us }
                }
            }
            5..=7 => Fault::Cut { host, for_us },
            8 => Fault::Outage { for_us },
            9 | 10 => Fault::Migrate { to: host },
            _ => Fault::Release,
        }
    }

    /// A length near the times that matter to the protocol, or any.
    fn span(&self, rng: &mut Rng) -> u64 {
        let watch_us = self.timing.watch_us(self.fenced);
        let near = [
            self.timing.reach_us(),
            watch_us,
            watch_us + self.timing.reach_us(),
        ];
        if rng.chance(500) {
            let middle_us = *rng.pick(&near);
            rng.between(middle_us * 3 / 4, middle_us * 5 / 4)
        } else {
            rng.between(1_000, 4_000_000)
        }
    }
}

/// Timings at the very edge of what is allowed.
fn timing(rng: &mut Rng) -> Timing {
    let heartbeat_interval_ms = rng.between(50, 250) as u32;
    let mut timing = Timing {
        heartbeat_interval_ms,
        reach_ms: heartbeat_interval_ms * rng.between(3, 5) as u32,
        watch_ms: 3_600_000,
        stop_ms: rng.between(1, 200) as u32,
        in_flight_ms: rng.between(10, 1000) as u32,
        drift_ppm: 500,
    };
    let least_us = Timing {
        in_flight_ms: 0,
        stop_ms: timing.stop_ms + timing.in_flight_ms,
        ..timing
    }
    .watch_us(true);
    timing.watch_ms = least_us.div_ceil(1000) as u32;
    timing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timings_are_allowed_and_one_millisecond_less_is_not() {
        let mut rng = Rng::new(1);
        for _ in 0..100 {
            let timing = timing(&mut rng);
            timing.check().unwrap();
            Timing {
                watch_ms: timing.watch_ms - 1,
                ..timing
            }
            .check()
            .unwrap_err();
        }
    }
}
