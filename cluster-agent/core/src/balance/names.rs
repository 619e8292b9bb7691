//! From indices back to names.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use super::field::U;
use super::planner::Planner;
use crate::admission::ledger::H;
use crate::model::{Cluster, GuestId, Rule};

/// Guests named in one breath.
const NAMED: usize = 4;

/// Names of the rules behind the indices in admission's books.
#[derive(Default)]
pub(crate) struct RuleNames {
    aparts: Vec<String>,
    togethers: Vec<String>,
    /// Hard guest-host rules with their guests.
    hosts: Vec<(String, BTreeSet<GuestId>)>,
}

impl RuleNames {
    /// In the order in which admission's books count them.
    pub fn new(cluster: &Cluster) -> Self {
        let mut names = Self::default();
        for (name, rule) in &cluster.rules {
            match rule {
                Rule::KeepTogether { .. } => names.togethers.push(name.clone()),
                Rule::KeepApart { .. } => names.aparts.push(name.clone()),
                Rule::GuestsToHosts {
                    guests, hard: true, ..
                } => names.hosts.push((name.clone(), guests.clone())),
                Rule::GuestsToHosts { .. } => {}
            }
        }
        names
    }
}

impl<O> Planner<'_, O> {
    pub(crate) fn host_name(&self, host: H) -> &str {
        &self.field.books().host_names[host as usize]
    }

    /// The guests of a unit.
    pub(crate) fn names(&self, unit: U) -> String {
        self.all_names(&[unit])
    }

    /// The guests of several units; the first few by name.
    pub(crate) fn all_names(&self, units: &[U]) -> String {
        let books = self.field.books();
        let guests: Vec<&str> = units
            .iter()
            .flat_map(|unit| &self.field.unit(*unit).members)
            .map(|guest| books.guest_names[*guest as usize].as_str())
            .collect();
        let named = guests[..guests.len().min(NAMED)].join(", ");
        match guests.len().saturating_sub(NAMED) {
            0 => named,
            more => alloc::format!("{named} and {more} more"),
        }
    }

    pub(crate) fn apart_name(&self, rule: u32) -> String {
        self.rule_names.aparts[rule as usize].clone()
    }

    /// The first keep-together rule of these units.
    pub(crate) fn together_rule(&self, units: &[U]) -> String {
        let books = self.field.books();
        units
            .iter()
            .flat_map(|unit| &self.field.unit(*unit).members)
            .filter_map(|guest| books.guests[*guest as usize].bonds.as_ref())
            .find_map(|bonds| bonds.togethers.first())
            .map_or_else(String::new, |rule| {
                self.rule_names.togethers[*rule as usize].clone()
            })
    }

    /// The first hard guest-host rule of a unit.
    pub(crate) fn host_rule(&self, unit: U) -> String {
        let books = self.field.books();
        let speaks = |guests: &BTreeSet<GuestId>| {
            self.field
                .unit(unit)
                .members
                .iter()
                .any(|member| guests.contains(&books.guest_names[*member as usize]))
        };
        let mut rules = self.rule_names.hosts.iter();
        rules
            .find(|(_, guests)| speaks(guests))
            .map_or_else(String::new, |(name, _)| name.clone())
    }
}
