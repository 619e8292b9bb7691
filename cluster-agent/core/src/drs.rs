//! Balancing as the leader does it: plan, recommend, carry out, look again.
//!
//! ```text
//!                    round is due, or the cluster changed
//!   resting ───────────────────────────────────────────► planned
//!      ▲                                                    │ steps that may be carried out:
//!      │ nothing to do by itself                            │ one wave of them
//!      ├────────────────────────────────────────────────────┤
//!      │                                                    ▼
//!      └──────────────────────────────────────────────── moving
//!                 all have arrived, failed or are overdue
//! ```
//!
//! Nothing is kept that a new leader would miss: it plans anew from what it observes, and a
//! migration that the old one ordered shows in where the guest is.

mod acting;
mod circumstances;
mod feasible;
mod round;
mod settings;
#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

pub use acting::{LeftAlone, UnderWay};
pub use feasible::check;
pub use round::{Numbered, Round};
pub use settings::{Automation, DrsSettings};

use crate::balance::{Balance, Move, Plan, plan};
use crate::evacuate::empty;
use crate::event::Level;
use crate::model::{Cluster, Guest, GuestId, HostMode};
use crate::settings::Settings;
use acting::Trouble;
use circumstances::Circumstances;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Migrate a guest.
    Move {
        /// Which, from where, to where.
        one: Move,
        /// Why, for the history.
        because: String,
    },
    /// Write into the history.
    Record(Level, String),
}

/// What the operator may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Carry these recommendations out; all there are if none is named.
    Apply(Vec<u64>),
}

/// Balancing under way.
#[derive(Debug, Clone, Default)]
pub struct Drs {
    /// When this leader began to observe.
    since_us: Option<u64>,
    next_round_us: u64,
    /// What the last plan was made for besides demand.
    planned_for: Option<Circumstances>,
    round: Round,
    under_way: Vec<UnderWay>,
    troubles: BTreeMap<GuestId, Trouble>,
    approved: BTreeSet<u64>,
}

impl Drs {
    /// What was planned last.
    pub fn round(&self) -> &Round {
        &self.round
    }

    /// Steps being carried out.
    pub fn under_way(&self) -> &[UnderWay] {
        &self.under_way
    }

    /// Has demand been observed for long enough to act on it?
    pub fn is_settled(&self, now_us: u64, settings: &DrsSettings) -> bool {
        let since_us = self.since_us.unwrap_or(now_us);
        now_us >= since_us + settings.smoothing.hold_ms * 1000
    }

    /// Looks at the cluster and decides what to do now.
    pub fn step(&mut self, now_us: u64, cluster: &Cluster, settings: &Settings) -> Vec<Decision> {
        let mut decisions = self.follow(now_us, cluster);
        // The operator's word is about what was shown, whatever a new look would recommend.
        if self.under_way.is_empty() {
            decisions.extend(self.act_as_told(now_us, cluster));
        }
        let told = self.approved.clone();
        if self.look(now_us, cluster, settings) {
            let dropped = told.difference(&self.approved);
            decisions.extend(dropped.copied().map(forgone));
            decisions.extend(self.act(now_us, cluster, settings));
        }
        decisions
    }

    /// Plans anew if it is time; was it?
    pub fn look(&mut self, now_us: u64, cluster: &Cluster, settings: &Settings) -> bool {
        self.since_us.get_or_insert(now_us);
        if !self.under_way.is_empty() || !self.is_due(now_us, cluster, settings) {
            return false;
        }
        self.next_round_us = now_us + settings.drs.round_ms * 1000;
        let balance = settings.balance();
        self.round.renew(plan_of(cluster, &balance));
        let current = self.round.numbers();
        self.approved.retain(|number| current.contains(number));
        true
    }

    fn is_due(&mut self, now_us: u64, cluster: &Cluster, settings: &Settings) -> bool {
        let planned_for = self.planned_for.as_ref();
        let same = planned_for.is_some_and(|then| then.hold(cluster, settings));
        if !same {
            self.planned_for = Some(Circumstances::of(cluster, settings));
        }
        !same || now_us >= self.next_round_us
    }

    /// The operator asks for something. Answers what comes of it, or why nothing does.
    pub fn order(&mut self, order: Order, cluster: &Cluster) -> Result<String, String> {
        let Order::Apply(numbers) = order;
        let mut numbers: BTreeSet<u64> = numbers.into_iter().collect();
        let current = self.round.numbers();
        if let Some(unknown) = numbers.iter().find(|number| !current.contains(*number)) {
            return Err(format!(
                "there is no recommendation {unknown} (any more); \
                 `godwit drs recommendations` lists them"
            ));
        }
        if numbers.is_empty() {
            numbers.extend(&current);
        }
        if numbers.is_empty() {
            return Ok("nothing is recommended".to_string());
        }
        self.approved.extend(&numbers);
        let words: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        let mut said = format!(
            "will carry out {}; `godwit drs history` tells how it went",
            words.join(", ")
        );
        if let Err(why) = check(cluster, &self.round.moves_of(&numbers)) {
            said = format!("{said}\nit waits until that is possible: {why}");
        }
        Ok(said)
    }
}

/// What was approved, could not be begun, and is not recommended any more.
fn forgone(number: u64) -> Decision {
    let text = format!("{number} was applied but could not begin, and is not recommended any more");
    Decision::Record(Level::Warning, text)
}

/// Hosts in maintenance are emptied first; the rest is looked at when nothing of that is left
/// that can be done.
fn plan_of(cluster: &Cluster, balance: &Balance) -> Plan {
    emptying(cluster, balance).unwrap_or_else(|| plan(cluster, balance))
}

/// How the hosts in maintenance are emptied, if anything can be done for that.
fn emptying(cluster: &Cluster, balance: &Balance) -> Option<Plan> {
    let leaves = |guest: &Guest| {
        let host = guest.host.as_ref().and_then(|host| cluster.hosts.get(host));
        host.is_some_and(|host| host.mode == HostMode::Maintenance)
    };
    if !cluster.guests.values().any(leaves) {
        return None;
    }
    let emptied = empty(cluster, balance);
    (!emptied.steps.is_empty()).then_some(emptied)
}
