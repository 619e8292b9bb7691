//! The planner: which guests to move where, so that all get what they want.
//!
//! [`plan`] first moves what has to move (guests on hosts in maintenance, guests that break
//! a hard rule: as few as possible), then what should (soft rules), then evens the loads:
//! again and again the best feasible step that passes the bar, a single move or, where no
//! single move passes, a swap. Every prefix of a plan keeps to capacity, hard rules and, if
//! it held at the start, admission's reserve. Every step makes the measure smaller by more
//! than the bar asks for, so the planner ends; and it only ends when it finds no further
//! step, so that the plan for what a plan leaves behind is empty.
//!
//! The same input gives the same plan on every host: integers only, names break ties.

pub(crate) mod contention;
mod cost;
mod explain;
mod field;
mod measure;
mod mend;
mod names;
mod plan;
mod planner;
mod search;
mod settings;
pub(crate) mod spread;
#[cfg(test)]
mod tests;
mod waves;

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

pub use plan::{LoadChange, Move, Plan, Recommendation, Unresolved, Why};
pub use settings::{Balance, Bar, Measure};

use crate::model::Cluster;
use crate::score::assess;
use contention::Contention;
use explain::Explainer;
use field::Field;
use measure::Objective;
use names::RuleNames;
use planner::Planner;
pub(crate) use planner::Scope;
use spread::Spread;

/// Plans a round.
pub fn plan(cluster: &Cluster, settings: &Balance) -> Plan {
    plan_for(cluster, settings, Scope::All)
}

pub(crate) fn plan_for(cluster: &Cluster, settings: &Balance, scope: Scope) -> Plan {
    let field = Field::new(cluster, settings);
    match settings.measure {
        Measure::Waiting => {
            let objective = Contention::new(&field, settings);
            with(cluster, settings, field, objective, scope)
        }
        Measure::Spread => {
            let objective = Spread::new(&field, settings);
            with(cluster, settings, field, objective, scope)
        }
    }
}

fn with<O: Objective>(
    cluster: &Cluster,
    settings: &Balance,
    field: Field,
    objective: O,
    scope: Scope,
) -> Plan {
    let mut planner = Planner {
        field,
        objective,
        settings,
        rule_names: RuleNames::new(cluster),
        steps: Vec::new(),
        unresolved: Vec::new(),
        scope,
        given_up: BTreeSet::new(),
    };
    planner.run();
    let books = planner.field.books();
    let mut explainer = Explainer::new(cluster, books, &planner.objective);
    let steps: Vec<Recommendation> = planner
        .steps
        .iter()
        .map(|step| explainer.explain(step))
        .collect();
    let mut plan = Plan {
        waves: waves::waves(&planner.steps, books, settings),
        steps,
        unresolved: planner.unresolved,
        before: assess(cluster),
        after: crate::score::Assessment::default(),
    };
    let mut moved = cluster.clone();
    plan.apply(&mut moved);
    plan.after = assess(&moved);
    plan
}
