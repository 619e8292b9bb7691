//! Migrations as the leader orders them, on both sides of the order.
//!
//! Messages may be lost: the leader repeats an order until it is answered, and the member knows
//! the orders again that it has already carried out.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::event::{Action, Level, Record};
use crate::messages::{Message, MoveAnswer, MoveOrder, MoveOutcome};
use crate::model::{GuestId, HostId};

/// Migrations out of one host at a time that may be set at most. More would only share its link
/// and take longer each.
pub const MOVES_MAX: usize = 16;

/// Ended migrations whose answer is kept for a leader that has not heard it.
const ANSWERS_MAX: usize = 2 * MOVES_MAX;
/// An order without an answer is repeated so often.
const REPEAT_EVERY_US: u64 = 2_000_000;

/// A migration under way.
#[derive(Debug, Clone)]
struct UnderWay {
    to: HostId,
    number: u64,
    ordered_by: HostId,
    leader_epoch: u64,
    because: String,
}

/// The migrations out of this host.
#[derive(Debug, Clone, Default)]
pub struct Moves {
    under_way: BTreeMap<GuestId, UnderWay>,
    answered: VecDeque<(u64, MoveAnswer)>,
}

/// Why no migration begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotBegun {
    /// It was carried out before; this is how it went.
    Answered(MoveAnswer),
    /// It cannot be.
    Refused(String),
}

/// What the end of a migration brings.
pub struct Ended {
    /// Who ordered it.
    pub ordered_by: HostId,
    /// What to answer.
    pub answer: MoveAnswer,
    /// What to write into the history.
    pub record: Record,
}

impl Moves {
    /// Begin a migration. An order repeated because its answer is late, or given again by a new
    /// leader who cannot know that it was, changes only who gets the answer.
    pub fn ordered(&mut self, from: &HostId, order: MoveOrder) -> Result<Option<Action>, NotBegun> {
        let mut answered = self.answered.iter();
        if let Some((_, answer)) = answered.find(|(number, _)| *number == order.number) {
            return Err(NotBegun::Answered(answer.clone()));
        }
        if let Some(one) = self.under_way.get_mut(&order.guest) {
            let by_successor = order.leader_epoch > one.leader_epoch && order.to == one.to;
            if one.number != order.number && !by_successor {
                let why = format!("it is on its way to {} already", one.to);
                return Err(NotBegun::Refused(why));
            }
            (one.number, one.leader_epoch) = (order.number, order.leader_epoch);
            one.ordered_by.clone_from(from);
            return Ok(None);
        }
        if self.under_way.len() >= MOVES_MAX {
            let why = format!("{MOVES_MAX} guests are leaving this host already");
            return Err(NotBegun::Refused(why));
        }
        let one = UnderWay {
            to: order.to.clone(),
            number: order.number,
            ordered_by: from.clone(),
            leader_epoch: order.leader_epoch,
            because: order.because.clone(),
        };
        self.under_way.insert(order.guest.clone(), one);
        Ok(Some(Action::Migrate {
            guest: order.guest,
            to: order.to,
            number: order.number,
            because: order.because,
        }))
    }

    /// A migration begun here has ended.
    pub fn ended(&mut self, guest: &GuestId, outcome: MoveOutcome) -> Option<Ended> {
        let one = self.under_way.remove(guest)?;
        let (level, text) = match &outcome {
            MoveOutcome::Moved {
                total_ms,
                blackout_us,
                ..
            } => (
                Level::Info,
                format!(
                    "migrated to {} in {total_ms} ms, blackout {}.{} ms: {}",
                    one.to,
                    blackout_us / 1000,
                    blackout_us % 1000 / 100,
                    one.because
                ),
            ),
            MoveOutcome::Failed { why } => (
                Level::Warning,
                format!("was not migrated to {}: {why} ({})", one.to, one.because),
            ),
        };
        let answer = MoveAnswer {
            guest: guest.clone(),
            to: one.to,
            number: one.number,
            outcome,
        };
        if self.answered.len() == ANSWERS_MAX {
            self.answered.pop_front();
        }
        self.answered.push_back((one.number, answer.clone()));
        let about = guest.clone();
        Some(Ended {
            record: Record { level, about, text },
            answer,
            ordered_by: one.ordered_by,
        })
    }

    /// It does not begin after all.
    pub fn forget(&mut self, guest: &GuestId) {
        self.under_way.remove(guest);
    }
}

/// The leader's orders that were not answered yet.
#[derive(Debug, Clone, Default)]
pub struct Orders {
    open: BTreeMap<u64, Open>,
}

#[derive(Debug, Clone)]
struct Open {
    from: HostId,
    order: MoveOrder,
    again_us: u64,
}

impl Orders {
    /// Give an order to the host that has the guest.
    pub fn give(&mut self, now_us: u64, from: HostId, order: MoveOrder) -> Action {
        let open = Open {
            from,
            again_us: now_us + REPEAT_EVERY_US,
            order,
        };
        let send = open.send();
        self.open.insert(open.order.number, open);
        send
    }

    /// It was carried out, or will not be.
    pub fn answered(&mut self, number: u64) {
        self.open.remove(&number);
    }

    /// Repeat what was not answered by hosts that still have the guest, as `has` tells, and
    /// forget the rest.
    pub fn repeat(&mut self, now_us: u64, has: impl Fn(&HostId, &GuestId) -> bool) -> Vec<Action> {
        self.open
            .retain(|_, open| has(&open.from, &open.order.guest));
        let mut again = Vec::new();
        for open in self.open.values_mut() {
            if now_us >= open.again_us {
                open.again_us = now_us + REPEAT_EVERY_US;
                again.push(open.send());
            }
        }
        again
    }
}

impl Open {
    fn send(&self) -> Action {
        Action::Send {
            to: self.from.clone(),
            message: Message::Move(self.order.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(guest: &str, to: &str, number: u64) -> MoveOrder {
        MoveOrder {
            guest: guest.into(),
            to: to.into(),
            number,
            leader_epoch: 1,
            because: "it is crowded here".into(),
        }
    }

    #[test]
    fn one_migration_a_guest_and_a_bounded_number_a_host() {
        let mut moves = Moves::default();
        let (a, b) = (HostId::from("a"), HostId::from("b"));
        let first = moves.ordered(&a, order("web1", "c", 1)).unwrap();
        assert!(matches!(first, Some(Action::Migrate { .. })));
        assert_eq!(moves.ordered(&b, order("web1", "c", 1)), Ok(None));
        let elsewhere = moves.ordered(&b, order("web1", "d", 2)).unwrap_err();
        let why = String::from("it is on its way to c already");
        assert_eq!(elsewhere, NotBegun::Refused(why));
        for number in 1..MOVES_MAX {
            let one = order(&format!("db{number}"), "c", 10 + number as u64);
            moves.ordered(&a, one).unwrap();
        }
        assert!(moves.ordered(&a, order("more", "c", 20)).is_err());

        let moved = MoveOutcome::Moved {
            total_ms: 1200,
            blackout_us: 3456,
            sent_mib: 900,
            link_mib_s: 800,
        };
        let ended = moves.ended(&"web1".into(), moved).unwrap();
        assert_eq!(ended.ordered_by, "b");
        let text = &ended.record.text;
        assert!(text.contains("to c in 1200 ms, blackout 3.4 ms"), "{text}");
        let again = moves.ordered(&a, order("web1", "c", 1)).unwrap_err();
        assert_eq!(again, NotBegun::Answered(ended.answer));
        let more = moves.ordered(&a, order("more", "c", 20));
        assert!(more.unwrap().is_some());
    }

    #[test]
    fn a_new_leader_takes_over_the_migration_that_the_old_one_ordered() {
        let mut moves = Moves::default();
        let (old, new) = (HostId::from("a"), HostId::from("b"));
        moves.ordered(&old, order("web1", "c", 1)).unwrap();
        let later = |to: &str| MoveOrder {
            leader_epoch: 2,
            ..order("web1", to, 7)
        };
        assert!(moves.ordered(&new, later("d")).is_err(), "to another host");
        assert_eq!(moves.ordered(&new, later("c")), Ok(None));
        let why = String::from("no route");
        let failed = moves.ended(&"web1".into(), MoveOutcome::Failed { why });
        let ended = failed.unwrap();
        assert_eq!((ended.ordered_by, ended.answer.number), (new, 7));
    }

    #[test]
    fn an_order_is_repeated_until_it_is_answered_or_the_guest_is_elsewhere() {
        let mut orders = Orders::default();
        let (second, anywhere) = (1_000_000, |_: &HostId, _: &GuestId| true);
        orders.give(0, "a".into(), order("web1", "c", 1));
        orders.give(0, "b".into(), order("web2", "c", 2));
        assert!(orders.repeat(second, anywhere).is_empty());
        assert_eq!(orders.repeat(3 * second, anywhere).len(), 2);
        orders.answered(1);
        assert_eq!(orders.repeat(6 * second, anywhere).len(), 1);
        assert!(orders.repeat(9 * second, |_, _| false).is_empty());
        assert!(orders.repeat(12 * second, anywhere).is_empty());
    }
}
