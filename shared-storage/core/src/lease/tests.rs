use alloc::string::String;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::observer::Verdict;
use crate::record::{Grant, Incarnation};

const S: u64 = 1_000_000;
const TERM: u32 = 7;

fn identity(host: &str) -> Identity {
    Identity {
        cluster: [0; 16],
        subject: "web1".into(),
        host: host.into(),
        incarnation: Incarnation([host.as_bytes()[0]; 16]),
        salt: [host.as_bytes()[0]; 8],
    }
}

/// One lease of host `a`, its clock and its hold.
struct Play {
    lease: Lease,
    now_us: u64,
    hold: Hold,
}

impl Play {
    fn new() -> Self {
        let lease = Lease::new(identity("a"), Timing::default());
        let now_us = 100 * S;
        let hold = Hold::new(now_us + S, TERM);
        Self {
            lease,
            now_us,
            hold,
        }
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        self.lease.step(self.now_us, self.hold, event)
    }

    fn claim(&mut self, last: Option<LeaseRecord>, grounds: Grounds) -> LeaseRecord {
        let can_fence = true;
        created(&self.step(Event::Claim {
            last,
            grounds,
            can_fence,
        }))
    }

    fn answer(&mut self, record: &LeaseRecord, outcome: Outcome) -> Vec<Action> {
        let record = record.clone();
        self.step(Event::Created { record, outcome })
    }

    /// Holds epoch 1.
    fn holding() -> (Self, LeaseRecord) {
        let mut play = Self::new();
        let record = play.claim(None, Grounds::Free);
        let actions = play.answer(&record, Outcome::Won);
        assert_eq!(actions, [Action::Forget { before: 1 }, Action::Run]);
        (play, record)
    }

    /// The deadline passes; then the host beats again, in the next term.
    fn lapse(&mut self) -> Vec<Action> {
        self.now_us = self.hold.deadline_us();
        let actions = self.step(Event::Tick);
        self.now_us += S;
        self.hold = Hold::new(self.now_us + S, self.hold.term() + 1);
        actions
    }

    fn acts(&self) -> bool {
        self.lease.may_act(self.now_us, self.hold)
    }
}

/// The record that is to be created.
fn created(actions: &[Action]) -> LeaseRecord {
    let create = |action: &Action| match action {
        Action::Create(record) => Some(record.clone()),
        _ => None,
    };
    actions
        .iter()
        .find_map(create)
        .unwrap_or_else(|| panic!("nothing is created: {actions:?}"))
}

/// An epoch of host `b`.
fn foreign(epoch: u64) -> LeaseRecord {
    LeaseRecord {
        cluster: [0; 16],
        subject: "web1".into(),
        epoch,
        grant: Grant::Acquired,
        holder: Some(identity("b").holder(3)),
        fence: 0,
        nonce: [9; 16],
        note: String::new(),
    }
}

#[test]
fn a_free_lease_is_acquired_without_fencing() {
    let (play, record) = Play::holding();
    assert_eq!(
        (record.epoch, record.grant, record.fence),
        (1, Grant::Acquired, 0)
    );
    assert_eq!(record.holder, Some(identity("a").holder(TERM)));
    assert!(play.acts());
}

#[test]
fn who_does_not_beat_gets_nothing() {
    let mut play = Play::new();
    play.hold = Hold::expired(TERM);
    let event = Event::Claim {
        last: None,
        grounds: Grounds::Free,
        can_fence: false,
    };
    assert_eq!(play.step(event), [Action::Refused(Refusal::NotBeating)]);
}

#[test]
fn a_takeover_runs_only_after_the_fence() {
    let mut play = Play::new();
    let record = play.claim(Some(foreign(4)), Grounds::Silent { silent_us: 2 * S });
    assert_eq!(
        (record.epoch, record.grant, record.fence),
        (5, Grant::TakenOver, 5)
    );
    let actions = play.answer(&record, Outcome::Won);
    assert_eq!(
        actions,
        [Action::Forget { before: 5 }, Action::Fence { epoch: 5 }]
    );
    assert!(!play.acts());
    assert_eq!(
        play.step(Event::Fenced {
            epoch: 5,
            done: true
        }),
        [Action::Run]
    );
    assert!(play.acts());
}

#[test]
fn where_the_fence_fails_late_writes_are_waited_for_and_nothing_is_owed_after() {
    let mut play = Play::new();
    let record = play.claim(Some(foreign(4)), Grounds::Silent { silent_us: 2 * S });
    play.answer(&record, Outcome::Won);
    assert_eq!(
        play.step(Event::Fenced {
            epoch: 5,
            done: false
        }),
        []
    );
    play.hold = Hold::new(play.now_us + 10 * S, TERM);
    play.now_us += Timing::default().in_flight_us();
    assert_eq!(play.step(Event::Tick), []);
    play.now_us = play.lease.wake_us(play.hold);
    assert_eq!(play.step(Event::Tick), [Action::Run]);
    assert_eq!(created(&play.step(Event::Release)).fence, 0);
}

#[test]
fn a_lapse_pauses_and_only_a_new_epoch_resumes() {
    let (mut play, record) = Play::holding();
    assert_eq!(play.lapse(), [Action::Pause]);
    assert!(!play.acts());
    let renewed = created(&play.step(Event::Tick));
    assert_eq!(
        (renewed.epoch, renewed.grant),
        (record.epoch + 1, Grant::Renewed)
    );
    assert!(!play.acts());
    play.answer(&renewed, Outcome::Won);
    assert!(play.acts());
}

#[test]
fn a_lapse_that_nobody_noticed_is_seen_by_the_term() {
    let (mut play, _) = Play::holding();
    // The deadline passed and was renewed between two looks at it.
    play.now_us += 5 * S;
    play.hold = Hold::new(play.now_us + S, TERM + 1);
    assert!(!play.acts());
    let actions = play.step(Event::Tick);
    assert_eq!(actions[0], Action::Pause);
    assert_eq!(created(&actions).grant, Grant::Renewed);
}

#[test]
fn who_comes_back_too_late_ends() {
    let (mut play, _) = Play::holding();
    play.lapse();
    let renewed = created(&play.step(Event::Tick));
    let last = foreign(2);
    let actions = play.answer(&renewed, Outcome::Lost { last: last.clone() });
    assert_eq!(actions, [Action::End(Ending::Lost(last))]);
    assert!(!play.acts() && play.lease.ending().is_some());
}

#[test]
fn a_claim_won_too_late_is_claimed_again() {
    let mut play = Play::new();
    let record = play.claim(None, Grounds::Free);
    play.now_us += 5 * S;
    play.hold = Hold::new(play.now_us + S, TERM + 1);
    let actions = play.answer(&record, Outcome::Won);
    assert_eq!(created(&actions).epoch, 2);
    assert!(!play.acts());
}

#[test]
fn a_hand_over_shuts_the_gate_until_its_outcome_is_certain() {
    let (mut play, _) = Play::holding();
    let to = identity("b").holder(3);
    let nonce = [9; 16];
    let event = Event::HandOver {
        to: to.clone(),
        nonce,
    };
    let record = created(&play.step(event));
    assert_eq!(
        (record.grant, record.holder.clone(), record.nonce),
        (Grant::HandedOver, Some(to), nonce)
    );
    assert!(!play.acts());
    play.answer(&record, Outcome::Unknown);
    play.now_us = play.lease.wake_us(play.hold);
    assert_eq!(play.step(Event::Tick), [Action::Settle(record.clone())]);
    assert!(!play.acts());
    let mut done = play.lease.clone();
    let ended = Event::Created {
        record: record.clone(),
        outcome: Outcome::Won,
    };
    let actions = done.step(play.now_us, play.hold, ended);
    assert_eq!(actions[1], Action::End(Ending::HandedOver(record.clone())));
    let actions = play.answer(&record, Outcome::Absent);
    assert_eq!(actions, [Action::Refused(Refusal::NotWritten), Action::Run]);
    assert!(play.acts());
}

#[test]
fn the_target_of_a_hand_over_need_not_fence_again() {
    let mut play = Play::new();
    let holder = Some(identity("a").holder(TERM));
    let last = LeaseRecord {
        grant: Grant::HandedOver,
        holder,
        fence: 3,
        ..foreign(4)
    };
    let adopt = Event::Adopt {
        last: last.clone(),
        died: false,
    };
    assert_eq!(play.step(adopt), [Action::Run]);
    // Unless it lapsed since it said that it was ready.
    let mut play = Play::new();
    play.hold = Hold::new(play.now_us + S, TERM + 1);
    let actions = play.step(Event::Adopt { last, died: false });
    assert_eq!(created(&actions).grant, Grant::Renewed);
}

#[test]
fn the_successor_of_a_dead_process_fences() {
    let mut play = Play::new();
    let holder = Some(identity("a").holder(TERM));
    let last = LeaseRecord {
        holder,
        ..foreign(4)
    };
    let record = created(&play.step(Event::Adopt { last, died: true }));
    assert_eq!((record.epoch, record.fence), (5, 5));
    let actions = play.answer(&record, Outcome::Won);
    assert_eq!(actions[1], Action::Fence { epoch: 5 });
}

#[test]
fn a_holder_that_finds_a_later_epoch_ends() {
    let (mut play, _) = Play::holding();
    let last = foreign(9);
    let actions = play.step(Event::Looked {
        last: Some(last.clone()),
    });
    assert_eq!(actions, [Action::Pause, Action::End(Ending::Lost(last))]);
}

#[test]
fn answers_to_older_questions_are_ignored() {
    let (mut play, record) = Play::holding();
    assert_eq!(play.answer(&record, Outcome::Absent), []);
    let release = created(&play.step(Event::Release));
    assert_eq!(play.answer(&record, Outcome::Won), []);
    assert_eq!(play.answer(&release, Outcome::Won).len(), 2);
}

#[test]
fn grounds_are_given_only_for_holders_that_are_gone() {
    let me = identity("a");
    let other = foreign(4);
    let gone = |verdict| grounds(&me, Some(&other), verdict);
    assert_eq!(grounds(&me, None, Verdict::Unknown), Ok(Grounds::Free));
    assert_eq!(gone(Verdict::Rebooted), Ok(Grounds::Rebooted));
    assert_eq!(
        gone(Verdict::Silent { silent_us: 5 }),
        Ok(Grounds::Silent { silent_us: 5 })
    );
    for verdict in [Verdict::Unknown, Verdict::Watching { silent_us: 5 }] {
        assert!(matches!(gone(verdict), Err(Held::ByOther { epoch: 4, .. })));
    }
    let free = LeaseRecord {
        grant: Grant::Released,
        holder: None,
        ..foreign(4)
    };
    assert_eq!(
        grounds(&me, Some(&free), Verdict::Unknown),
        Ok(Grounds::Free)
    );
    let ours = LeaseRecord {
        holder: Some(me.holder(1)),
        ..foreign(4)
    };
    assert_eq!(
        grounds(&me, Some(&ours), Verdict::Rebooted),
        Err(Held::ByUs { epoch: 4 })
    );
    let earlier = Identity {
        incarnation: Incarnation([0; 16]),
        ..me.clone()
    };
    let ours = LeaseRecord {
        holder: Some(earlier.holder(1)),
        ..foreign(4)
    };
    assert_eq!(
        grounds(&me, Some(&ours), Verdict::Unknown),
        Ok(Grounds::Rebooted)
    );
}

#[derive(Debug, Clone)]
enum Move {
    Pass(u64),
    Beat,
    Tick,
    HandOver,
    Release,
    Answer(u8),
    Looked(u64),
    Fenced(bool),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        (0..2 * S).prop_map(Move::Pass),
        Just(Move::Beat),
        Just(Move::Tick),
        Just(Move::HandOver),
        Just(Move::Release),
        (0..4_u8).prop_map(Move::Answer),
        (0..9_u64).prop_map(Move::Looked),
        any::<bool>().prop_map(Move::Fenced),
    ];
    proptest::collection::vec(one, 0..60)
}

proptest! {
    /// Whatever the order of events: acting needs an epoch that was certainly won, in a term
    /// that goes on; what ended never acts again; each new epoch follows the last one held.
    #[test]
    fn no_order_of_events_lets_it_act_without_right(moves in moves(), fence in any::<bool>()) {
        let mut play = Play::new();
        // The creation that waits for its answer, and the last one that was asked for.
        let mut open: Option<LeaseRecord>;
        let mut fence_owed;
        let mut won: Option<LeaseRecord> = None;
        let grounds = if fence { Grounds::Rebooted } else { Grounds::Free };
        let first = play.claim(fence.then(|| foreign(1)), grounds);
        fence_owed = first.fence;
        open = Some(first);
        for step in moves {
            let event = match step {
                Move::Pass(us) => { play.now_us += us; continue }
                Move::Beat => {
                    let (sent_us, reach_us) = (play.now_us, S);
                    play.hold = play.hold.after_ack(sent_us, play.now_us, reach_us);
                    continue;
                }
                Move::Tick => Event::Tick,
                Move::HandOver => Event::HandOver { to: identity("b").holder(3), nonce: [9; 16] },
                Move::Release => Event::Release,
                Move::Answer(kind) => {
                    let Some(record) = open.clone() else { continue };
                    let outcome = match kind {
                        0 => Outcome::Won,
                        1 => Outcome::Lost { last: foreign(record.epoch) },
                        2 => Outcome::Absent,
                        _ => Outcome::Unknown,
                    };
                    if outcome == Outcome::Won {
                        won = Some(record.clone());
                    }
                    if outcome != Outcome::Unknown {
                        open = None;
                    }
                    Event::Created { record, outcome }
                }
                Move::Looked(epoch) => Event::Looked { last: Some(foreign(epoch + 1)) },
                Move::Fenced(done) => {
                    Event::Fenced { epoch: fence_owed, done }
                }
            };
            let ended = play.lease.ending().is_some();
            let before = play.lease.record().cloned();
            for action in play.step(event) {
                let refused = matches!(action, Action::Refused(_));
                prop_assert!(!ended || refused, "{action:?} after the end");
                if let Action::Create(record) = action {
                    let epoch = |record: &Option<LeaseRecord>| record.as_ref().map_or(0, |r| r.epoch);
                    let last = epoch(&before).max(epoch(&won));
                    prop_assert_eq!(record.epoch, last + 1);
                    fence_owed = record.fence;
                    open = Some(record);
                }
            }
            if play.acts() {
                let record = play.lease.record().cloned();
                let won = won.clone();
                prop_assert_eq!(record.as_ref(), won.as_ref());
                let holder = won.and_then(|won| won.holder);
                prop_assert_eq!(holder.map(|holder| holder.term), Some(play.hold.term()));
            }
        }
    }
}
