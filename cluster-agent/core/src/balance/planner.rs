//! Puts a plan together: mend what is broken, grant wishes, then even the loads, until
//! nothing more is found.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::field::{Field, U};
use super::measure::{Objective, Shift};
use super::names::RuleNames;
use super::plan::{Unresolved, Why};
use super::search::{Candidate, Search};
use super::settings::Balance;
use crate::admission::ledger::{G, H};

/// A step that was taken, in indices.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub moves: Vec<(G, H, H)>,
    pub why: Why,
    pub gain: i64,
    pub burden: u64,
}

/// What a round is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Everything.
    All,
    /// Only to empty hosts in maintenance; each guest goes to the best host.
    Empty,
    /// The same; each guest goes where it just fits, to keep room for large ones.
    EmptyTightly,
}

/// A planner at work.
pub(crate) struct Planner<'a, O> {
    pub field: Field,
    pub objective: O,
    pub settings: &'a Balance,
    pub rule_names: RuleNames,
    pub steps: Vec<Step>,
    pub unresolved: Vec<Unresolved>,
    /// What this round is for.
    pub scope: Scope,
    /// Units whose keep-together rules cannot be mended.
    pub given_up: BTreeSet<U>,
}

impl<O: Objective> Planner<'_, O> {
    /// Plans everything.
    pub fn run(&mut self) {
        loop {
            let before = self.steps.len();
            self.unresolved.clear();
            self.given_up.clear();
            self.bring_together();
            self.empty_hosts();
            if self.scope != Scope::All {
                return;
            }
            self.leave_forbidden_hosts();
            self.keep_apart();
            self.grant_wishes();
            self.even_out();
            if self.steps.len() == before || self.full() {
                return;
            }
        }
    }

    fn full(&self) -> bool {
        self.steps.len() >= self.settings.max_steps as usize
    }

    fn even_out(&mut self) {
        let mut search = Search::new(&self.field);
        while !self.full() {
            let found = search
                .step(&mut self.field, &self.objective)
                .or_else(|| search.swap(&mut self.field, &self.objective));
            match found {
                Some(taken) => self.record(&taken),
                None => return,
            }
        }
    }

    /// Notes what the search has done to the field.
    fn record(&mut self, taken: &Candidate) {
        let Shift { from, to, .. } = taken.shift;
        let mut moves = self.moves_of(taken.unit, from, to);
        let mut why = Why::Balance;
        if let Some(back) = taken.back {
            why = Why::Swap;
            let returning = self.moves_of(back, to, from);
            let at = if taken.back_first { 0 } else { moves.len() };
            moves.splice(at..at, returning);
        }
        self.objective.settle(&self.field, [from, to]);
        self.steps.push(Step {
            moves,
            why,
            gain: taken.gain,
            burden: taken.burden,
        });
    }

    fn moves_of(&self, unit: U, from: H, to: H) -> Vec<(G, H, H)> {
        let members = self.field.unit(unit).members.iter();
        members.map(|member| (*member, from, to)).collect()
    }

    /// Moves a unit unless the admission policy is against it.
    pub fn shift(&mut self, unit: U, to: H, why: Why) -> bool {
        let from = self.field.unit(unit).host;
        let (gain, burden) = (self.gain(unit, to), self.field.unit(unit).burden);
        if self.full() || !self.field.try_shift(unit, to) {
            return false;
        }
        self.objective.settle(&self.field, [from, to]);
        self.steps.push(Step {
            moves: self.moves_of(unit, from, to),
            why,
            gain,
            burden,
        });
        true
    }

    /// Puts a unit back where it was and forgets the steps since.
    pub fn undo(&mut self, unit: U, home: H, steps: usize) {
        let from = self.field.unit(unit).host;
        if from != home {
            self.field.shift(unit, home);
            self.objective.settle(&self.field, [from, home]);
        }
        self.steps.truncate(steps);
    }
}
