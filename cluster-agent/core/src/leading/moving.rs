//! What the leader has moved: because balancing wants it, or the operator.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Leading;
use crate::balance::Move;
use crate::drs::{Decision as Balancing, Order, check};
use crate::event::{Action, Record};
use crate::messages::{MoveAnswer, MoveOrder, MoveOutcome};
use crate::model::{GuestId, HostId};
use crate::placement::{place, usage};
use crate::rules::RuleBook;

/// What the history has balancing's records under.
const ABOUT_DRS: &str = "drs";

impl Leading {
    /// A member answered an order to migrate.
    pub fn moved(&mut self, now_us: u64, answer: &MoveAnswer) -> Vec<Action> {
        self.changed = true;
        self.moves.answered(answer.number);
        let mut actions = Vec::from([Action::ReadLeases {
            guests: Vec::from([answer.guest.clone()]),
        }]);
        if let MoveOutcome::Failed { why } = &answer.outcome {
            let failed = self.drs.failed(now_us, &answer.guest, why);
            actions.extend(failed.into_iter().map(|wish| self.balance(now_us, wish)));
        }
        actions
    }

    /// What balancing wants, as an action.
    pub(super) fn balance(&mut self, now_us: u64, wish: Balancing) -> Action {
        match wish {
            Balancing::Move { one, because } => self.order_move(now_us, &one, &because).1,
            Balancing::Record(level, text) => Action::Record(Record {
                level,
                about: ABOUT_DRS.into(),
                text,
            }),
        }
    }

    /// The operator asks something of balancing.
    pub fn order_balancing(&mut self, order: Order) -> Result<String, String> {
        self.changed = true;
        self.drs.order(order, &self.cluster)
    }

    /// A migration that may be carried out now: to that host, or to the best.
    pub fn choose_move(&self, guest: &GuestId, to: Option<&HostId>) -> Result<Move, String> {
        let known = self.cluster.guests.get(guest);
        let known = known.ok_or_else(|| format!("there is no guest {guest}"))?;
        let from = known.host.clone();
        let from = from.ok_or_else(|| format!("{guest} does not run; start it instead"))?;
        let to = match to {
            Some(to) if *to == from => return Err(format!("{guest} is on {to} already")),
            Some(to) if !self.cluster.hosts.contains_key(to) => {
                return Err(format!("there is no host {to}; `godwit hosts` lists them"));
            }
            Some(to) => to.clone(),
            None => self.best_other(guest, &from)?,
        };
        let one = Move {
            guest: guest.clone(),
            from,
            to,
        };
        check(&self.cluster, core::slice::from_ref(&one))?;
        Ok(one)
    }

    fn best_other(&self, guest: &GuestId, from: &HostId) -> Result<HostId, String> {
        let book = RuleBook::new(&self.cluster.rules);
        let avoid = [from.clone()].into();
        place(&self.cluster, &book, &usage(&self.cluster), guest, &avoid)
            .map(|choice| choice.host)
            .map_err(|nowhere| format!("no other host will do: {}", nowhere.because))
    }

    /// Has a migration carried out.
    pub fn order_move(&mut self, now_us: u64, one: &Move, because: &str) -> (u64, Action) {
        self.last_order = now_us.max(self.last_order + 1);
        let order = MoveOrder {
            guest: one.guest.clone(),
            to: one.to.clone(),
            number: self.last_order,
            leader_epoch: self.epoch,
            because: because.into(),
        };
        let send = self.moves.give(now_us, one.from.clone(), order);
        (self.last_order, send)
    }
}
