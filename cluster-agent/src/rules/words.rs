//! A rule in words, and the table of all.

use std::collections::BTreeSet;
use std::fmt::Write;

use cluster_core::model::{Affinity, Rule};

use super::routes::RulesView;
use crate::cli::table::table;
use crate::drs::view::BrokenRule;

/// `web1 and web2 never share a host`.
pub fn sentence(rule: &Rule) -> String {
    let who = |guests: &BTreeSet<String>| {
        let names: Vec<&str> = guests.iter().map(String::as_str).collect();
        names.join(" and ")
    };
    match rule {
        Rule::KeepTogether { guests } => format!("{} share a host", who(guests)),
        Rule::KeepApart { guests } => format!("{} never share a host", who(guests)),
        Rule::GuestsToHosts {
            guests,
            group,
            affinity,
            hard,
        } => {
            let must = if *hard { "must" } else { "should" };
            let side = match affinity {
                Affinity::On => "on",
                Affinity::Off => "off",
            };
            format!("{} {must} run {side} the hosts of {group}", who(guests))
        }
    }
}

/// `godwit rules list`.
pub fn list(rules: &RulesView, broken: &[BrokenRule]) -> String {
    let rows: Vec<_> = rules
        .rules
        .iter()
        .map(|(name, rule)| {
            let why: Vec<&str> = broken
                .iter()
                .filter(|one| one.rule == *name)
                .map(|one| one.why.as_str())
                .collect();
            let state = if why.is_empty() {
                "obeyed".to_owned()
            } else {
                format!("broken: {}", why.join("; "))
            };
            [name.clone(), sentence(rule), state]
        })
        .collect();
    let mut out = table(["RULE", "WHAT IT SAYS", "STATE"], &rows);
    for (group, hosts) in &rules.groups {
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "group {group}: {}", hosts.join(", "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_said_as_people_say_them() {
        let guests = ["web1", "web2"].map(String::from).into();
        let apart = Rule::KeepApart { guests };
        assert_eq!(sentence(&apart), "web1 and web2 never share a host");
        let rule = Rule::GuestsToHosts {
            guests: ["db".to_owned()].into(),
            group: "rack1".to_owned(),
            affinity: Affinity::Off,
            hard: false,
        };
        assert_eq!(sentence(&rule), "db should run off the hosts of rack1");
    }
}
