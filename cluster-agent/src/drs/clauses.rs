//! A recommendation as a person can scan it: what and why first, then a line for each of what it
//! does to the loads, gains, costs, takes and obeys.

use std::fmt::Write;

use cluster_core::balance::Recommendation;

use crate::cli::table::percent;

/// The lines of one recommendation, or of one step of a plan.
pub(super) fn clauses(number: u64, step: &Recommendation) -> String {
    let loads = step.loads.iter().map(|load| {
        let (before, after) = (percent(load.before_permille), percent(load.after_permille));
        format!("{} {before} to {after}", load.host)
    });
    let loads: Vec<String> = loads.collect();
    let obeys = step.obeys.join(", ");
    let mut out = format!("{number:>4}. {}\n", step.words);
    for (name, said) in [
        ("load", &loads.join(", ")),
        ("gain", &step.effect),
        ("takes", &step.migration),
        ("obeys", &obeys),
    ] {
        if !said.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "      {name:<6} {said}");
        }
    }
    out
}
