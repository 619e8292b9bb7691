//! What a host needs for itself, and so does not have for guests: its kernel, its agent, the
//! device threads of its guests' VMMs, whatever else runs on it.
//!
//! Every member finds out about itself: what its kernel has counted less what the VMMs have.
//! The difference is smoothed like demand and told in steps that only a lasting change crosses,
//! so that noise neither moves a guest nor shuts one out. It goes with the reports, and so every
//! leader plans with the same.

use alloc::collections::BTreeMap;

use crate::demand::{Smoothed, Smoothing};
use crate::model::{GuestId, Resources};
use crate::observation::{Counted, HostCounted, mcpu};

/// A sample is taken over at least so long.
const SAMPLE_US: u64 = 10_000_000;
/// What is told goes up and down in such steps, and is rounded down to them ...
const STEP: Resources = Resources {
    mcpu: 100,
    memory_mib: 128,
};

/// What one host needs for itself.
#[derive(Debug, Clone, Default)]
pub struct OwnNeeds {
    began: Option<(HostCounted, BTreeMap<GuestId, Counted>)>,
    seen: Option<Seen>,
}

#[derive(Debug, Clone)]
struct Seen {
    at_ms: u64,
    mcpu: Smoothed,
    memory_mib: Smoothed,
    told: Resources,
}

impl OwnNeeds {
    /// Takes in what the kernel has counted, and the VMMs of all guests here.
    pub fn count(
        &mut self,
        host: HostCounted,
        guests: &BTreeMap<GuestId, Counted>,
        by: &Smoothing,
    ) {
        let Some((began, then)) = &self.began else {
            self.began = Some((host, guests.clone()));
            return;
        };
        let elapsed_us = host.at_us.saturating_sub(began.at_us);
        if elapsed_us < SAMPLE_US && host.at_us >= began.at_us {
            return;
        }
        // Where guests came or went meanwhile nobody knows what was theirs.
        if let Some(theirs) = used_by(then, guests)
            && let Some(busy_us) = host.busy_us.checked_sub(began.busy_us)
        {
            let all = Resources::new(mcpu(busy_us, elapsed_us), host.used_mib);
            self.observe(host.at_us / 1000, all.minus(theirs), by);
        }
        self.began = Some((host, guests.clone()));
    }

    /// Takes in what the host itself used of late.
    pub fn observe(&mut self, now_ms: u64, used: Resources, by: &Smoothing) {
        let seen = self.seen.get_or_insert_with(|| Seen {
            at_ms: now_ms,
            mcpu: Smoothed::starting_at(used.mcpu),
            memory_mib: Smoothed::starting_at(used.memory_mib),
            told: Resources::default(),
        });
        let elapsed_ms = now_ms.saturating_sub(seen.at_ms);
        seen.at_ms = now_ms;
        seen.mcpu.observe(now_ms, elapsed_ms, used.mcpu, by);
        seen.memory_mib
            .observe(now_ms, elapsed_ms, used.memory_mib, by);
        seen.told = Resources {
            mcpu: stepped(seen.told.mcpu, seen.mcpu.value(), STEP.mcpu),
            memory_mib: stepped(
                seen.told.memory_mib,
                seen.memory_mib.value(),
                STEP.memory_mib,
            ),
        };
    }

    /// What it comes to; nothing before the first sample.
    pub fn told(&self) -> Option<Resources> {
        Some(self.seen.as_ref()?.told)
    }
}

/// What the guests that are counted both then and now used meanwhile, and have of memory;
/// nothing unless they are the same.
fn used_by(
    then: &BTreeMap<GuestId, Counted>,
    now: &BTreeMap<GuestId, Counted>,
) -> Option<Resources> {
    if !then.keys().eq(now.keys()) {
        return None;
    }
    let mut sum = Resources::default();
    for (then, now) in then.values().zip(now.values()) {
        let elapsed_us = now.at_us.checked_sub(then.at_us).filter(|us| *us > 0)?;
        let cpu_us = now.cpu_us.checked_sub(then.cpu_us)?;
        sum = sum.plus(Resources::new(mcpu(cpu_us, elapsed_us), now.resident_mib));
    }
    Some(sum)
}

/// ... but where it has been, within a step on either side, it stays.
fn stepped(told: u64, value: u64, step: u64) -> u64 {
    if told.abs_diff(value) < step {
        told
    } else {
        value / step * step
    }
}

/// What a host that was `granted` so much has for guests: no more than the machine less its own
/// needs, but at least half of what was granted, lest a host that counts wrongly is lost to all.
pub fn for_guests(granted: Resources, machine: Resources, own: Resources) -> Resources {
    let part = |granted: u64, left: u64| granted.min(left).max(granted / 2);
    let left = machine.minus(own);
    Resources {
        mcpu: part(granted.mcpu, left.mcpu),
        memory_mib: part(granted.memory_mib, left.memory_mib),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(seconds: u64, busy_s: u64, used_mib: u64) -> HostCounted {
        HostCounted {
            at_us: seconds * 1_000_000,
            busy_us: busy_s * 1_000_000,
            used_mib,
            machine: Resources::new(4000, 8192),
        }
    }

    fn guest(seconds: u64, cpu_s: u64, resident_mib: u64) -> Counted {
        Counted {
            at_us: seconds * 1_000_000,
            cpu_us: cpu_s * 1_000_000,
            resident_mib,
            ..Counted::default()
        }
    }

    #[test]
    fn it_is_what_the_guests_did_not_use() {
        let (mut own, by) = (OwnNeeds::default(), Smoothing::default());
        let guests = |at, cpu_s| BTreeMap::from([("g".into(), guest(at, cpu_s, 1024))]);
        own.count(host(100, 50, 1500), &guests(100, 7), &by);
        own.count(host(105, 70, 1500), &guests(105, 12), &by);
        assert_eq!(own.told(), None, "too short a time");
        own.count(host(110, 63, 1500), &guests(110, 17), &by);
        // 1.3 cores busy, one of them by the guest; 476 MiB beside it.
        assert_eq!(own.told(), Some(Resources::new(300, 384)));
    }

    #[test]
    fn a_guest_that_comes_or_begins_anew_spoils_the_sample_and_no_more() {
        let (mut own, by) = (OwnNeeds::default(), Smoothing::default());
        let none = BTreeMap::new();
        let guests = |at, cpu_s| BTreeMap::from([("g".into(), guest(at, cpu_s, 0))]);
        own.count(host(100, 50, 0), &none, &by);
        own.count(host(110, 60, 0), &guests(110, 900), &by);
        own.count(host(120, 80, 0), &guests(120, 5), &by);
        assert_eq!(own.told(), None);
        own.count(host(130, 91, 0), &guests(130, 15), &by);
        assert_eq!(own.told(), Some(Resources::new(100, 0)));
    }

    #[test]
    fn noise_and_spikes_change_nothing_and_what_lasts_does() {
        let (mut own, by) = (OwnNeeds::default(), Smoothing::default());
        let mut told = |from_s: u64, to_s: u64, used: &dyn Fn(u64) -> u64| {
            let samples = (from_s..to_s).step_by(10).map(|at| {
                own.observe(at * 1000, Resources::new(used(at), 300), &by);
                own.told().unwrap_or_default().mcpu
            });
            samples.collect::<alloc::collections::BTreeSet<_>>()
        };
        let noise = |at: u64| 250 + at * 7919 % 100;
        told(0, 600, &noise);
        let steps = told(600, 86_400, &noise);
        assert_eq!(steps.len(), 1, "{steps:?}");
        let spike = |at: u64| {
            if at.is_multiple_of(600) {
                3000
            } else {
                noise(at)
            }
        };
        assert_eq!(told(86_400, 170_000, &spike), steps);
        let (busier, at_least) = (told(170_000, 171_000, &|_| 2000), 1900);
        assert!(
            busier.last().is_some_and(|told| *told >= at_least),
            "{busier:?}"
        );
        let calm = told(171_000, 180_000, &noise);
        assert!(calm.first().is_some_and(|told| *told <= 500), "{calm:?}");
    }

    #[test]
    fn a_host_keeps_half_of_what_it_was_granted_for_its_guests() {
        let (granted, machine) = (Resources::new(4000, 7000), Resources::new(4000, 8192));
        let left = |mcpu, mib| for_guests(granted, machine, Resources::new(mcpu, mib));
        assert_eq!(left(0, 500), granted, "the usual is kept back already");
        assert_eq!(left(300, 2048), Resources::new(3700, 6144));
        assert_eq!(left(9000, 9000), Resources::new(2000, 3500));
    }
}
