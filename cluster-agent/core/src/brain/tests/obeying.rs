//! What a host does that is told something by the leader, or by what it reads.

use super::*;
use crate::model::Desired;

#[test]
fn a_stale_leader_is_not_obeyed() {
    let mut brain = Brain::new("b".into(), Incarnation([9; 16]));
    brain.step(0, inventory(&["a", "b"], &["web"]));
    brain.step(0, Event::Hold(Hold::new(1 << 40, 1)));
    brain.step(0, Event::LeaderLease(held(5, "a", 7)));
    let order = |leader_epoch| Event::Received {
        from: "a".into(),
        message: Message::Start(StartOrder {
            guest: "web".into(),
            leader_epoch,
            from_epoch: 3,
            spec_revision: 0,
            because: String::new(),
        }),
    };
    let actions = brain.step(1, order(4));
    assert!(
        actions.iter().all(|a| !matches!(a, Action::Start { .. })),
        "{actions:?}"
    );
    let actions = brain.step(2, order(5));
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::Start { from_epoch: 3, .. }))
    );
}

/// The operator's word reaches the leader first: what this host has read is older.
#[test]
fn a_guest_ordered_to_start_is_not_stopped_by_an_old_reading() {
    let mut brain = Brain::new("b".into(), Incarnation([9; 16]));
    let Event::Inventory(mut old) = inventory(&["a", "b"], &["web"]) else {
        unreachable!()
    };
    let web = old.guests.get_mut("web").unwrap();
    (web.desired, web.revision) = (Desired::Stopped, 7);
    let mut new = old.clone();
    new.guests.get_mut("web").unwrap().revision = 9;
    brain.step(0, Event::Inventory(old));
    brain.step(0, Event::Hold(Hold::new(1 << 40, 1)));
    brain.step(0, Event::LeaderLease(held(5, "a", 7)));
    let order = StartOrder {
        guest: "web".into(),
        leader_epoch: 5,
        from_epoch: 3,
        spec_revision: 8,
        because: String::new(),
    };
    let (from, message) = (HostId::from("a"), Message::Start(order));
    let actions = brain.step(1, Event::Received { from, message });
    assert!(actions.iter().any(|a| matches!(a, Action::Start { .. })));
    let local = LocalGuest {
        epoch: 4,
        state: GuestState::Starting,
        running_ms: 0,
    };
    let (guest, now) = (String::from("web"), Some(local));
    brain.step(2, Event::Local { guest, now });
    let stops = |actions: Vec<Action>| actions.iter().any(|a| matches!(a, Action::Stop { .. }));
    assert!(!stops(brain.step(3, Event::Tick)));
    assert!(!stops(brain.step(20_000 * MS, Event::Tick)));
    assert!(stops(brain.step(20_001 * MS, Event::Inventory(new))));
}

#[test]
fn what_shall_not_run_is_stopped_where_it_runs_once() {
    let mut brain = Brain::new("b".into(), Incarnation([9; 16]));
    let Event::Inventory(mut stopped) = inventory(&["a", "b"], &["web"]) else {
        unreachable!("it is an inventory")
    };
    stopped.guests.get_mut("web").unwrap().desired = Desired::Stopped;
    brain.step(0, Event::Inventory(stopped));
    let local = LocalGuest {
        epoch: 3,
        state: GuestState::Running { beating: true },
        running_ms: 0,
    };
    let guest = String::from("web");
    brain.step(
        0,
        Event::Local {
            guest,
            now: Some(local),
        },
    );
    let stops = |actions: Vec<Action>| {
        let stop = |action: &&Action| matches!(action, Action::Stop { .. });
        actions.iter().filter(stop).count()
    };
    assert_eq!(stops(brain.step(1, Event::Tick)), 1);
    assert_eq!(stops(brain.step(2, Event::Tick)), 0);
}
