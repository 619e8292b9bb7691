//! What the leader starts, and when.

use super::*;
use crate::messages::{Beat, StartOutcome};
use crate::model::Desired;

#[test]
fn a_lone_host_leads_and_starts_what_shall_run() {
    let mut brain = Brain::new("a".into(), Incarnation([7; 16]));
    leader(&mut brain, 1000, &["a"], &["web"]);
    let guest = String::from("web");
    let seen = LeaseSeen::default();
    let actions = brain.step(
        2000,
        Event::GuestLease {
            guest: guest.clone(),
            seen,
        },
    );
    assert!(actions.is_empty());
    let actions = brain.step(2000, Event::Tick);
    let [
        Action::Start {
            from_epoch: 0,
            because,
            ..
        },
        Action::Record(recorded),
    ] = &actions[..]
    else {
        panic!("{actions:?}")
    };
    assert!(because.contains("nobody holds it"), "{because}");
    assert_eq!(recorded.text, format!("is started on a: {because}"));
    let outcome = StartOutcome::Running { epoch: 1 };
    brain.step(
        3000,
        Event::StartDone {
            guest: guest.clone(),
            outcome,
        },
    );
    let local = LocalGuest {
        epoch: 1,
        state: GuestState::Running { beating: false },
        running_ms: 0,
    };
    brain.step(
        3000,
        Event::Local {
            guest,
            now: Some(local),
        },
    );
    brain.step(3500, Event::Tick);
    assert_eq!(
        brain.cluster().unwrap().guests["web"].host.as_deref(),
        Some("a")
    );
    assert!(brain.step(4000, Event::Tick).is_empty());
}

#[test]
fn a_dead_hosts_guest_is_restarted_after_w_and_not_before() {
    let mut brain = Brain::new("a".into(), Incarnation([7; 16]));
    leader(&mut brain, 0, &["a", "b"], &["web"]);
    let web = String::from("web");
    brain.step(
        0,
        Event::GuestLease {
            guest: web.clone(),
            seen: held(4, "b", 9),
        },
    );
    // Host b dies at 2 s.
    let sighting = |now_ms: u64| {
        let record = HeartbeatRecord {
            host: "b".into(),
            incarnation: Incarnation([9; 16]),
            counter: now_ms.min(2000),
            sent_us: 0,
            term: 1,
            flags: 0,
            writer_pid: 1,
        };
        Event::Sighted {
            host: "b".into(),
            record: Some(record),
            silent_us: now_ms.saturating_sub(2000) * MS,
        }
    };
    let (mut started_ms, mut now_ms) = (None, 0);
    while now_ms < 8000 && started_ms.is_none() {
        now_ms += 50;
        let event = match now_ms % 250 {
            0 => sighting(now_ms),
            50 if now_ms < 2000 => {
                let beat = Beat {
                    incarnation: Incarnation([9; 16]),
                    sequence: now_ms,
                    leader_epoch: 1,
                };
                Event::Received {
                    from: "b".into(),
                    message: Message::Beat(beat),
                }
            }
            _ => Event::Tick,
        };
        let actions = brain.step(now_ms * MS, event);
        if actions
            .iter()
            .any(|a| matches!(a, Action::Start { from_epoch: 4, .. }))
        {
            started_ms = Some(now_ms);
        }
    }
    assert_eq!(started_ms, Some(5550));
    assert_eq!(brain.peer("b").unwrap().0, HostState::Dead);
}

#[test]
fn a_guest_that_was_switched_off_from_inside_is_not_started_again() {
    let mut brain = Brain::new("a".into(), Incarnation([7; 16]));
    leader(&mut brain, 1000, &["a"], &["web"]);
    let guest = String::from("web");
    // Its host wrote down that it is off, and the inventory has not been read since.
    let wanted = Event::Wanted {
        guest: guest.clone(),
        desired: Desired::Stopped,
        revision: 5,
    };
    brain.step(2000, wanted);
    let seen = LeaseSeen {
        epoch: 3,
        holder: None,
    };
    brain.step(2000, Event::GuestLease { guest, seen });
    let started = |actions: Vec<Action>| {
        actions
            .iter()
            .any(|action| matches!(action, Action::Start { .. }))
    };
    assert!(!started(brain.step(2000, Event::Tick)));
    brain.step(2500, inventory(&["a"], &["web"]));
    assert!(!started(brain.step(3000, Event::Tick)), "older news");
}
