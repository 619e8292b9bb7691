//! Puts a step into data and words that a person can check.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::cost::migration;
use super::measure::Objective;
use super::plan::{LoadChange, Move, Recommendation, Why};
use super::planner::Step;
use crate::admission::ledger::{H, Ledger};
use crate::migration_cost::MigrationCost;
use crate::model::{Affinity, Cluster, Guest, HostId, Resources, Rule};
use crate::placement::{Use, load_permille};
use crate::rules::RuleBook;

/// Migrations one after the other: how long all take, the worst blackout, the slowest link and
/// the most that is written; nothing is measured where one of them is not.
fn together(mut all: impl Iterator<Item = MigrationCost>) -> MigrationCost {
    let first = all.next().unwrap_or_default();
    all.fold(first, |sum, one| MigrationCost {
        duration_ms: sum.duration_ms + one.duration_ms,
        blackout_us: sum.blackout_us.max(one.blackout_us),
        link_mib_s: sum.link_mib_s.zip(one.link_mib_s).map(|(a, b)| a.min(b)),
        dirty_mib_s: sum.dirty_mib_s.zip(one.dirty_mib_s).map(|(a, b)| a.max(b)),
    })
}

/// Explains steps one after the other, keeping up with the loads.
pub(crate) struct Explainer<'a, O> {
    cluster: &'a Cluster,
    guests: Vec<&'a Guest>,
    hosts: Vec<&'a HostId>,
    demand: Vec<Resources>,
    rules: RuleBook<'a>,
    books: &'a Ledger,
    objective: &'a O,
}

impl<'a, O: Objective> Explainer<'a, O> {
    /// Starts from the cluster as it is.
    pub fn new(cluster: &'a Cluster, books: &'a Ledger, objective: &'a O) -> Self {
        let hosts: Vec<&HostId> = cluster.hosts.keys().collect();
        let index: BTreeMap<&HostId, usize> = hosts.iter().copied().zip(0..).collect();
        let mut demand = alloc::vec![Resources::default(); hosts.len()];
        for guest in cluster.guests.values() {
            if let Some(at) = guest.host.as_ref().and_then(|host| index.get(host)) {
                demand[*at] = demand[*at].plus(guest.demand);
            }
        }
        Self {
            cluster,
            guests: cluster.guests.values().collect(),
            hosts,
            demand,
            rules: RuleBook::new(&cluster.rules),
            books,
            objective,
        }
    }

    /// Explains the next step.
    pub fn explain(&mut self, step: &Step) -> Recommendation {
        let mut touched: Vec<H> = Vec::new();
        for (_, from, to) in &step.moves {
            for host in [*from, *to] {
                if !touched.contains(&host) {
                    touched.push(host);
                }
            }
        }
        let before: Vec<u64> = touched.iter().map(|host| self.load(*host)).collect();
        for (guest, from, to) in &step.moves {
            let demand = self.guests[*guest as usize].demand;
            self.demand[*from as usize] = self.demand[*from as usize].minus(demand);
            self.demand[*to as usize] = self.demand[*to as usize].plus(demand);
        }
        let loads: Vec<LoadChange> = touched
            .iter()
            .zip(before)
            .map(|(host, before_permille)| LoadChange {
                host: self.hosts[*host as usize].clone(),
                before_permille,
                after_permille: self.load(*host),
            })
            .collect();
        let specs = || step.moves.iter().map(|(g, ..)| self.guests[*g as usize]);
        let migration = together(specs().map(migration));
        let memory_mib = specs().map(|guest| guest.configured.memory_mib).sum();
        let moves = self.moves(step);
        let obeys = self.obeys(&moves);
        let words = words(step, &moves);
        let effect = self.objective.words(step.gain, step.burden) + &self.wishes(&moves);
        Recommendation {
            moves,
            why: step.why.clone(),
            gain: self.objective.shown(step.gain),
            cost: self.objective.shown_cost(step.burden),
            migration_ms: migration.duration_ms,
            blackout_us: migration.blackout_us,
            memory_mib,
            loads,
            obeys,
            words,
            effect,
            migration: migration.to_string(),
        }
    }

    fn load(&self, host: H) -> u64 {
        let used = Use {
            reserved: Resources::default(),
            wanted: self.demand[host as usize],
        };
        load_permille(used, self.books.hosts[host as usize].capacity)
    }

    fn moves(&self, step: &Step) -> Vec<Move> {
        step.moves
            .iter()
            .map(|(guest, from, to)| Move {
                guest: self.books.guest_names[*guest as usize].clone(),
                from: self.hosts[*from as usize].clone(),
                to: self.hosts[*to as usize].clone(),
            })
            .collect()
    }

    fn obeys(&self, moves: &[Move]) -> Vec<String> {
        let mut rules: Vec<String> = moves
            .iter()
            .flat_map(|one| self.rules.of(&one.guest))
            .map(|(name, _)| (*name).to_string())
            .collect();
        rules.sort();
        rules.dedup();
        rules
    }

    /// The wishes that count in the gain: granted by the step, or given up for it.
    fn wishes(&self, moves: &[Move]) -> String {
        if self.objective.wish() == 0 {
            return String::new();
        }
        let (mut granted, mut given_up) = (BTreeSet::new(), BTreeSet::new());
        for one in moves {
            for (name, rule) in self.rules.of(&one.guest) {
                match [&one.from, &one.to].map(|host| self.is_as_wished(rule, host)) {
                    [Some(false), Some(true)] => granted.insert(*name),
                    [Some(true), Some(false)] => given_up.insert(*name),
                    _ => false,
                };
            }
        }
        let told = |how: &str, rules: BTreeSet<&str>| {
            let rules: Vec<&str> = rules.into_iter().collect();
            if rules.is_empty() {
                return String::new();
            }
            format!(", the wish of {} {how} and counted in", rules.join(", "))
        };
        told("granted", granted) + &told("given up", given_up)
    }

    /// Of a soft rule about hosts: is this one of those it wishes for?
    fn is_as_wished(&self, rule: &Rule, host: &HostId) -> Option<bool> {
        let Rule::GuestsToHosts {
            group,
            affinity,
            hard: false,
            ..
        } = rule
        else {
            return None;
        };
        let belongs = self.cluster.hosts.get(host)?.groups.contains(group);
        Some(belongs == (*affinity == Affinity::On))
    }
}

/// What moves, and why.
fn words(step: &Step, moves: &[Move]) -> String {
    let what = moves
        .iter()
        .map(|one| format!("{} from {} to {}", one.guest, one.from, one.to))
        .collect::<Vec<_>>()
        .join(" and ");
    let why = match &step.why {
        Why::Balance => "evens the load".to_string(),
        Why::Swap => "evens the load where no single move can".to_string(),
        Why::Rule { rule } => format!("mends rule {rule}"),
        Why::Wish => "grants a wish".to_string(),
        Why::Maintenance { host } => format!("empties {host} for maintenance"),
    };
    format!("{what}: {why}")
}
