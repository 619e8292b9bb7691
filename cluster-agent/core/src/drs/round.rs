//! A plan whose steps have numbers that last from round to round.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::balance::{Move, Plan, Recommendation, Unresolved};
use crate::score::Assessment;

/// A recommendation with its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Numbered {
    /// Stays as long as the same moves are recommended.
    pub number: u64,
    /// The recommendation.
    pub step: Recommendation,
}

/// What the last round found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Round {
    /// What is recommended, in this order.
    pub recommendations: Vec<Numbered>,
    /// By index (from 0), what may be carried out at the same time.
    pub waves: Vec<Vec<usize>>,
    /// What is wrong and cannot be mended.
    pub unresolved: Vec<Unresolved>,
    /// The cluster as it is.
    pub before: Assessment,
    /// The cluster once all is carried out.
    pub after: Assessment,
    last_number: u64,
}

impl Round {
    /// Takes in the plan of a new round.
    pub(super) fn renew(&mut self, plan: Plan) {
        let old = core::mem::take(&mut self.recommendations);
        for step in plan.steps {
            let known = old.iter().find(|one| one.step.moves == step.moves);
            let number = known.map_or_else(|| self.next_number(), |one| one.number);
            self.recommendations.push(Numbered { number, step });
        }
        self.waves = plan.waves;
        self.unresolved = plan.unresolved;
        self.before = plan.before;
        self.after = plan.after;
    }

    /// All moves of these recommendations, in the order of the plan.
    pub(super) fn moves_of(&self, numbers: &BTreeSet<u64>) -> Vec<Move> {
        let chosen = self.recommendations.iter();
        chosen
            .filter(|one| numbers.contains(&one.number))
            .flat_map(|one| one.step.moves.clone())
            .collect()
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// The number of a step, a new one if it is not recommended.
    pub(super) fn number_of(&mut self, step: &Recommendation) -> u64 {
        let mut all = self.recommendations.iter();
        match all.find(|one| one.step.moves == step.moves) {
            Some(one) => one.number,
            None => self.next_number(),
        }
    }

    /// The numbers of what is recommended.
    pub fn numbers(&self) -> BTreeSet<u64> {
        self.recommendations.iter().map(|one| one.number).collect()
    }

    /// A recommendation by its number.
    pub fn get(&self, number: u64) -> Option<&Recommendation> {
        let one = self.recommendations.iter().find(|one| one.number == number);
        one.map(|one| &one.step)
    }

    pub(super) fn remove(&mut self, number: u64) {
        self.recommendations.retain(|one| one.number != number);
        self.waves.clear();
    }
}
