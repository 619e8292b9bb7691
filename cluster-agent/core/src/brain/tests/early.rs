//! Orders that come before what they speak of.

use super::*;
use crate::messages::StartOutcome;

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
