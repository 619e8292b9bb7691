//! What one brain does, event by event. Several of them together are in the simulator.

use alloc::boxed::Box;

use storage_core::record::HeartbeatRecord;

use super::*;
use crate::messages::{Beat, GuestState, Holder, LocalGuest, StartOrder, StartOutcome};
use crate::model::{Desired, Guest, Resources};
use crate::settings::HostEntry;

const MS: u64 = 1000;

fn inventory(hosts: &[&str], guests: &[&str]) -> Event {
    let capacity = Resources::new(8000, 16 * 1024);
    let entry = HostEntry {
        capacity,
        ..HostEntry::default()
    };
    let guest = Guest::sized(Resources::new(1000, 1024));
    Event::Inventory(Box::new(Inventory {
        hosts: hosts.iter().map(|h| ((*h).into(), entry.clone())).collect(),
        guests: guests
            .iter()
            .map(|g| ((*g).into(), guest.clone()))
            .collect(),
        ..Inventory::default()
    }))
}

fn held(epoch: u64, host: &str, boot: u8) -> LeaseSeen {
    LeaseSeen {
        epoch,
        holder: Some(Holder {
            host: host.into(),
            incarnation: Incarnation([boot; 16]),
            term: 1,
        }),
    }
}

fn leader(brain: &mut Brain, now_us: u64, hosts: &[&str], guests: &[&str]) {
    brain.step(now_us, inventory(hosts, guests));
    brain.step(now_us, Event::Hold(Hold::new(1 << 40, 1)));
    brain.step(now_us, Event::LeaderLease(LeaseSeen::default()));
    let actions = brain.step(now_us, Event::Tick);
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::ContendForLeader { from_epoch: 0, .. }))
    );
    let actions = brain.step(now_us, Event::LeaderLease(held(1, "a", 7)));
    let all: Vec<String> = guests.iter().map(|g| (*g).to_string()).collect();
    assert!(
        actions.contains(&Action::ReadLeases { guests: all }),
        "{actions:?}"
    );
}

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
fn admission_is_asked_of_the_leader_and_its_choice_is_kept() {
    let mut brain = Brain::new("a".into(), Incarnation([7; 16]));
    let web = String::from("web");
    let guest = Guest::sized(Resources::new(1000, 1024));
    assert_eq!(brain.admit(&web, &guest), None);
    leader(&mut brain, 0, &["a"], &["web"]);
    let large = Guest::sized(Resources::new(1000, 64 * 1024));
    let refusal = brain.admit(&"db".into(), &large).unwrap().unwrap_err();
    assert!(
        refusal.proved && !refusal.remedies.is_empty(),
        "{refusal:?}"
    );
    let seen = LeaseSeen::default();
    brain.step(
        1,
        Event::GuestLease {
            guest: web.clone(),
            seen,
        },
    );
    assert_eq!(brain.admit(&web, &guest).unwrap().unwrap().host, "a");
    let actions = brain.step(2, Event::Tick);
    let because = actions.iter().find_map(|action| match action {
        Action::Start { because, .. } => Some(because.as_str()),
        _ => None,
    });
    assert!(because.unwrap().contains("admission control chose a"));
    assert!(!brain.is_placed_by_hand(&guest));
    let by_hand = Guest {
        automation: Some(crate::drs::Automation::Manual),
        ..guest.clone()
    };
    assert!(brain.is_placed_by_hand(&by_hand));
    let mut new = |size: &Guest, host: &str| brain.place_on(&"new".into(), size, &host.into());
    assert_eq!(new(&guest, "a"), Ok(()));
    for (size, host, part) in [(&guest, "b", "no host b"), (&large, "a", "a has ")] {
        let why = new(size, host).unwrap_err();
        assert!(why.contains(part), "{why}");
    }
    let reserve = brain.reserve(Resources::new(1000, 4096)).unwrap();
    assert_eq!(reserve.fits, 3, "{}", reserve.words);
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

fn told(brain: &mut Brain, now_us: u64, hosts: &[&str], change: impl Fn(&mut HostEntry)) {
    let Event::Inventory(mut inventory) = inventory(hosts, &["web"]) else {
        unreachable!("it is an inventory")
    };
    change(inventory.hosts.get_mut("a").unwrap());
    brain.step(now_us, Event::Inventory(inventory));
}

/// Host b is heard and its record moves; so for so long.
fn b_is_well(brain: &mut Brain, from_ms: u64, to_ms: u64, guests: &[&str]) -> Vec<Action> {
    let incarnation = Incarnation([9; 16]);
    let mut actions = Vec::new();
    for now_ms in (from_ms..to_ms).step_by(250) {
        let record = HeartbeatRecord {
            host: "b".into(),
            incarnation,
            counter: now_ms,
            sent_us: 0,
            term: 1,
            flags: HostNote { hears: 1, of: 1 }.to_flags(),
            writer_pid: 1,
        };
        let sighted = Event::Sighted {
            host: "b".into(),
            record: Some(record),
            silent_us: 0,
        };
        let local = LocalGuest {
            epoch: 4,
            state: GuestState::Running { beating: true },
            running_ms: 0,
        };
        let report = crate::messages::Report {
            incarnation,
            guests: guests
                .iter()
                .map(|g| ((*g).into(), local.clone()))
                .collect(),
            ..crate::messages::Report::default()
        };
        let received = Event::Received {
            from: "b".into(),
            message: Message::Report(report),
        };
        for event in [sighted, received, Event::Tick] {
            actions.extend(brain.step(now_ms * MS, event));
        }
    }
    actions
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
        message: Message::Release(crate::messages::ReleaseOrder {
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

#[test]
fn a_leader_that_is_emptied_hands_the_lead_over_and_then_leaves() {
    let mut brain = Brain::new("a".into(), Incarnation([7; 16]));
    leader(&mut brain, 0, &["a", "b"], &["web"]);
    let released = |actions: &[Action]| {
        let release = |action: &Action| matches!(action, Action::ReleaseLeader { .. });
        actions.iter().any(release)
    };
    let leaves = |actions: &[Action]| actions.contains(&Action::Leave);
    let calm = b_is_well(&mut brain, 250, 3000, &[]);
    assert!(!released(&calm) && brain.leads());
    told(&mut brain, 3000 * MS, &["a", "b"], |a| a.leaving = true);
    assert!(!brain.leads());
    brain.step(3100 * MS, Event::LeaderLease(held(3, "b", 9)));
    let web = |now| Event::Local {
        guest: "web".into(),
        now,
    };
    let local = LocalGuest {
        epoch: 2,
        state: GuestState::Running { beating: true },
        running_ms: 0,
    };
    brain.step(3150 * MS, web(Some(local)));
    let full = brain.step(5000 * MS, Event::Tick);
    assert!(!leaves(&full), "a guest is here");
    brain.step(5100 * MS, web(None));
    assert!(leaves(&brain.step(6000 * MS, Event::Tick)));
    // The last host of a cluster has nobody to hand it to, and leaves as the leader.
    let mut last = Brain::new("a".into(), Incarnation([7; 16]));
    leader(&mut last, 0, &["a"], &["web"]);
    told(&mut last, 1, &["a"], |a| a.maintenance = true);
    assert!(last.leads() && !leaves(&last.step(2, Event::Tick)));
    told(&mut last, 3, &["a"], |a| a.leaving = true);
    assert!(leaves(&last.step(2_000_000, Event::Tick)));
}

fn start_order(guest: &str) -> Event {
    Event::Received {
        from: "b".into(),
        message: Message::Start(StartOrder {
            guest: guest.into(),
            leader_epoch: 1,
            from_epoch: 0,
            spec_revision: 0,
            because: "it shall run".into(),
        }),
    }
}

#[test]
fn an_order_waits_for_the_spec_that_the_leader_has_read_before_this_host() {
    let mut brain = Brain::new("a".into(), Incarnation([7; 16]));
    brain.step(0, inventory(&["a", "b"], &[]));
    brain.step(0, Event::Hold(Hold::new(1 << 40, 1)));
    assert_eq!(starts(&brain.step(10 * MS, start_order("web"))), 0);
    assert_eq!(starts(&brain.step(500 * MS, Event::Tick)), 0);
    let read = brain.step(900 * MS, inventory(&["a", "b"], &["web"]));
    assert_eq!(starts(&read), 1, "{read:?}");
    assert_eq!(starts(&brain.step(1000 * MS, Event::Tick)), 0);
}

#[test]
fn an_order_whose_spec_does_not_come_is_refused() {
    let mut brain = Brain::new("a".into(), Incarnation([7; 16]));
    brain.step(0, inventory(&["a", "b"], &[]));
    brain.step(0, Event::Hold(Hold::new(1 << 40, 1)));
    brain.step(10 * MS, start_order("web"));
    let late = brain.step(4000 * MS, Event::Tick);
    let refused = |action: &Action| {
        matches!(action, Action::Send { message: Message::Started(answer), .. }
            if matches!(answer.outcome, StartOutcome::Refused { .. }))
    };
    assert!(late.iter().any(refused), "{late:?}");
}

fn starts(actions: &[Action]) -> usize {
    let is_start = |action: &&Action| matches!(action, Action::Start { .. });
    actions.iter().filter(is_start).count()
}
