//! Leases that hosts give back, told to or by themselves.

use super::*;
use crate::messages::ReleaseOrder;

/// Its response to isolation may be to let its guests go, which it can tell nobody.
#[test]
fn what_an_isolated_host_lets_go_of_is_started_elsewhere() {
    let mut brain = Brain::new("a".into(), Incarnation([7; 16]));
    leader(&mut brain, 0, &["a", "b"], &["web"]);
    let web = String::from("web");
    let lease = |seen| Event::GuestLease {
        guest: web.clone(),
        seen,
    };
    brain.step(0, lease(held(4, "b", 9)));
    let (mut asked, mut started) = (0, false);
    for now_ms in (50..20_000).step_by(50) {
        let record = HeartbeatRecord {
            host: "b".into(),
            incarnation: Incarnation([9; 16]),
            counter: now_ms,
            sent_us: 0,
            term: 1,
            flags: 0,
            writer_pid: 1,
        };
        let sighted = Event::Sighted {
            host: "b".into(),
            record: Some(record),
            silent_us: 0,
        };
        brain.step(now_ms * MS, sighted);
        let actions = brain.step(now_ms * MS, Event::Tick);
        let asks = |action: &&Action| matches!(action, Action::ReadLeases { .. });
        if actions.iter().any(|action| asks(&action)) {
            asked += 1;
            let released = LeaseSeen {
                epoch: 5,
                holder: None,
            };
            let seen = if now_ms < 10_000 {
                held(4, "b", 9)
            } else {
                released
            };
            brain.step(now_ms * MS, lease(seen));
        }
        let starts = |a: &Action| matches!(a, Action::Start { from_epoch: 5, .. });
        started |= actions.iter().any(starts);
    }
    assert_eq!(brain.peer("b").unwrap().0, HostState::Isolated);
    assert!(started, "the leader does not see that it was released");
    assert!((3..10).contains(&asked), "asked {asked} times");
}

#[test]
fn a_living_host_lets_go_of_a_guest_that_it_holds_and_does_not_run() {
    let mut brain = Brain::new("a".into(), Incarnation([7; 16]));
    leader(&mut brain, 0, &["a", "b"], &["web"]);
    let guest = String::from("web");
    let seen = held(4, "b", 9);
    brain.step(0, Event::GuestLease { guest, seen });
    let releases = |actions: Vec<Action>| {
        let release = |action: &&Action| matches!(action, Action::Send { to, message: Message::Release(_) } if to == "b");
        actions.iter().filter(release).count()
    };
    assert_eq!(releases(b_is_well(&mut brain, 0, 6000, &["web"])), 0);
    assert_eq!(releases(b_is_well(&mut brain, 6000, 10_000, &[])), 0);
    // Every five seconds, until it has.
    assert_eq!(releases(b_is_well(&mut brain, 10_000, 17_500, &[])), 2);
    assert_eq!(releases(b_is_well(&mut brain, 17_500, 30_000, &["web"])), 0);
}

#[test]
fn only_a_host_without_the_guest_lets_go_of_it() {
    let mut brain = Brain::new("b".into(), Incarnation([9; 16]));
    brain.step(0, inventory(&["a", "b"], &["web"]));
    let order = |leader_epoch| Event::Received {
        from: "a".into(),
        message: Message::Release(ReleaseOrder {
            guest: "web".into(),
            leader_epoch,
            because: String::new(),
        }),
    };
    let lets_go = |actions: Vec<Action>| {
        let release = |action: &Action| matches!(action, Action::Release { .. });
        actions.iter().any(release)
    };
    brain.step(0, Event::LeaderLease(held(5, "a", 7)));
    assert!(!lets_go(brain.step(1, order(4))), "of an old leader");
    assert!(lets_go(brain.step(2, order(5))));
    let local = LocalGuest {
        epoch: 3,
        state: GuestState::Running { beating: true },
        running_ms: 0,
    };
    let (guest, now) = (String::from("web"), Some(local));
    brain.step(3, Event::Local { guest, now });
    assert!(!lets_go(brain.step(4, order(5))));
}
