//! What a planner needs to know of a measure that it makes smaller.

use alloc::string::String;

use crate::admission::ledger::H;
use crate::model::Resources;

use super::field::Field;

/// Weight that goes from one host to another, and what comes back (in a swap).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shift {
    pub from: H,
    pub to: H,
    pub out: Resources,
    pub back: Resources,
}

impl Shift {
    pub fn one_way(from: H, to: H, out: Resources) -> Self {
        Self {
            from,
            to,
            out,
            back: Resources::default(),
        }
    }

    /// The loads of both hosts afterwards.
    pub fn after(&self, field: &Field) -> (Resources, Resources) {
        let (from, to) = (field.load[self.from as usize], field.load[self.to as usize]);
        (
            from.plus(self.back).minus(self.out),
            to.plus(self.out).minus(self.back),
        )
    }
}

/// A measure of badness.
pub(crate) trait Objective {
    /// Are estimates exact?
    const EXACT: bool;
    /// About how much a shift makes it smaller. Only to choose what to look at closely.
    fn estimate(&self, field: &Field, shift: &Shift) -> i64;
    /// How much a shift makes it smaller. Exact.
    fn gain(&self, field: &Field, shift: &Shift) -> i64;
    /// How much a bit more CPU, memory, or both on a host would make it larger.
    fn pressure(&self, field: &Field, host: H) -> [i64; 3];
    /// What one broken wish is worth.
    fn wish(&self) -> i64;
    /// Does a step with this exact gain, cost and shift pass the bar?
    fn worth(&self, field: &Field, shift: &Shift, gain: i64, burden: u64) -> bool;
    /// What to choose the best step by.
    fn merit(&self, gain: i64, burden: u64) -> i64;
    /// Is it useless to relieve this host even of a fitting unit?
    fn calm(&self, field: &Field, host: H) -> bool;
    /// Takes note of the new loads of two hosts.
    fn settle(&mut self, field: &Field, touched: [H; 2]);
    /// The measure now.
    fn total(&self) -> i64;
    /// A gain as [`super::plan::Recommendation`] shows it.
    fn shown(&self, gain: i64) -> i64;
    /// A cost as [`super::plan::Recommendation`] shows it.
    fn shown_cost(&self, burden: u64) -> i64;
    /// Gain and cost in words.
    fn words(&self, gain: i64, burden: u64) -> String;
}
