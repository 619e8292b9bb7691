//! In which order guests are started: by priority, by size, after others.

use super::*;
use crate::messages::{GuestState, Incarnation, LocalGuest};
use crate::model::{Priority, Readiness};

const A_BOOT: Incarnation = Incarnation([1; 16]);

impl Stage {
    /// As set, with these guests instead, which nobody runs.
    fn of(guests: &[(&str, Guest)]) -> Self {
        let mut stage = Self::set(5);
        let named = |(name, guest): &(&str, Guest)| ((*name).to_string(), guest.clone());
        stage.cluster.guests = guests.iter().map(named).collect();
        stage.whereabouts = stage
            .cluster
            .guests
            .keys()
            .map(|name| (name.clone(), Whereabouts::Lost(1, Loss::Free)))
            .collect();
        stage
    }

    /// It runs on a: so long, and it has said that it lives or not.
    fn runs(&mut self, guest: &str, running_ms: u64, beating: bool) {
        let held = Whereabouts::Held("a".to_string());
        self.whereabouts.insert(guest.to_string(), held);
        let local = LocalGuest {
            epoch: 2,
            state: GuestState::Running { beating },
            running_ms,
        };
        let report = [(guest.to_string(), local)].into();
        self.owners.reported(0, &"a".to_string(), A_BOOT, report);
    }
}

fn guest(priority: Priority, memory_mib: u64) -> Guest {
    Guest {
        priority,
        ..Guest::sized(Resources::new(100, memory_mib))
    }
}

fn after(other: &str, until: Readiness) -> Guest {
    let mut guest = guest(Priority::Medium, 64);
    guest.after.insert(other.to_string(), until);
    guest
}

fn ordered(decisions: &[Decision]) -> Vec<&str> {
    decisions
        .iter()
        .filter_map(|decision| match decision {
            Decision::Order { guest, .. } => Some(guest.as_str()),
            _ => None,
        })
        .collect()
}

#[test]
fn the_five_priorities_go_one_after_the_other_and_the_large_first_among_equals() {
    let stage = Stage::of(&[
        ("a-lowest", guest(Priority::Lowest, 2048)),
        ("b-low", guest(Priority::Low, 1024)),
        ("c-small", guest(Priority::Medium, 64)),
        ("d-large", guest(Priority::Medium, 512)),
        ("e-high", guest(Priority::High, 64)),
        ("f-highest", guest(Priority::Highest, 64)),
    ]);
    let decisions = Failover::default().step(0, &stage.now());
    let expected = [
        "f-highest",
        "e-high",
        "d-large",
        "c-small",
        "b-low",
        "a-lowest",
    ];
    assert_eq!(ordered(&decisions), expected);
}

#[test]
fn a_guest_that_an_urgent_one_waits_for_is_as_urgent() {
    let mut web = after("db", Readiness::Running);
    web.priority = Priority::Highest;
    let stage = Stage::of(&[
        ("db", guest(Priority::Lowest, 64)),
        ("other", guest(Priority::High, 64)),
        ("web", web),
    ]);
    let decisions = Failover::default().step(0, &stage.now());
    assert_eq!(ordered(&decisions), ["db", "other"], "web waits");
}

#[test]
fn a_guest_waits_until_the_other_runs_beats_or_has_run_long_enough() {
    let cases = [
        (Readiness::Running, 0_u64, false, "after db runs"),
        (
            Readiness::Heartbeat,
            0,
            true,
            "after db has said that it lives",
        ),
        (
            Readiness::DelayMs(4000),
            4000,
            false,
            "after db has run for 4000 ms",
        ),
    ];
    for (until, running_ms, beating, words) in cases {
        let db = guest(Priority::Medium, 64);
        let mut stage = Stage::of(&[("db", db), ("web", after("db", until))]);
        let mut failover = Failover::default();
        let decisions = failover.step(0, &stage.now());
        assert_eq!(ordered(&decisions), ["db"]);
        let waits = failover.waiting().next().unwrap().1;
        assert!(waits.contains(words), "{waits}");
        if until != Readiness::Running {
            stage.runs("db", running_ms.saturating_sub(1), false);
            assert!(failover.step(SECOND, &stage.now()).is_empty(), "{until:?}");
        }
        stage.runs("db", running_ms, beating);
        let decisions = failover.step(2 * SECOND, &stage.now());
        assert_eq!(ordered(&decisions), ["web"], "{until:?}");
    }
}

#[test]
fn nobody_waits_for_what_shall_not_run_or_for_ever() {
    let mut db = guest(Priority::Medium, 64);
    db.desired = Desired::Stopped;
    let web = after("db", Readiness::Heartbeat);
    let mut stage = Stage::of(&[("db", db), ("web", web)]);
    assert_eq!(ordered(&Failover::default().step(0, &stage.now())), ["web"]);
    stage.cluster.guests.get_mut("db").unwrap().desired = Desired::Running;
    stage.runs("db", 0, false);
    let patience_us = stage.settings.timings.dependency_patience_ms * 1000;
    let mut failover = Failover::default();
    assert!(ordered(&failover.step(0, &stage.now())).is_empty());
    assert!(ordered(&failover.step(patience_us - 1, &stage.now())).is_empty());
    assert_eq!(ordered(&failover.step(patience_us, &stage.now())), ["web"]);
}
