//! Which steps may be carried out at the same time.
//!
//! While a guest moves it takes room on both hosts. A step joins the present wave if its
//! target has room for it without anything that leaves in this wave, if no rule ties its
//! guests to others that move in this wave, and within the limits of migrations at a time;
//! otherwise a new wave begins.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use super::planner::Step;
use super::settings::Balance;
use crate::admission::ledger::{DenseHost, G, H, Ledger};
use crate::model::Resources;

/// The wave that is being filled.
struct Wave {
    steps: Vec<usize>,
    moves: u32,
    per_host: Vec<u32>,
    per_link: BTreeMap<(H, H), u32>,
    /// Guests that move in it, and the rules they are bound by.
    guests: BTreeSet<G>,
    tied: bool,
}

impl Wave {
    fn new(hosts: usize) -> Self {
        Self {
            steps: Vec::new(),
            moves: 0,
            per_host: vec![0; hosts],
            per_link: BTreeMap::new(),
            guests: BTreeSet::new(),
            tied: false,
        }
    }

    fn takes(&self, step: &Step, free: &[Resources], books: &Ledger, limits: &Balance) -> bool {
        let tied = is_tied(step, books);
        if self.steps.is_empty() {
            return true;
        }
        // One step with bound guests at a time: what its rules ask for depends on the rest.
        // Moves that belong together go one after the other, by themselves.
        if tied && self.tied || step.moves.len() > 1 {
            return false;
        }
        let per_host = limits.at_once_per_host.max(1);
        let on_link = |from: H, to: H| self.per_link.get(&link(from, to)).copied();
        self.moves < limits.at_once.max(1)
            && step.moves.iter().all(|(guest, from, to)| {
                let size = books.guests[*guest as usize].size;
                !self.guests.contains(guest)
                    && self.per_host[*from as usize] < per_host
                    && self.per_host[*to as usize] < per_host
                    && on_link(*from, *to).unwrap_or(0) < limits.at_once_per_link.max(1)
                    && size.fits(free[*to as usize])
            })
    }

    fn add(&mut self, number: usize, step: &Step, books: &Ledger) {
        self.steps.push(number);
        self.tied |= is_tied(step, books);
        for (guest, from, to) in &step.moves {
            self.moves += 1;
            self.guests.insert(*guest);
            self.per_host[*from as usize] += 1;
            self.per_host[*to as usize] += 1;
            *self.per_link.entry(link(*from, *to)).or_default() += 1;
        }
    }
}

/// Two hosts, whichever way a guest goes between them.
fn link(from: H, to: H) -> (H, H) {
    (from.min(to), from.max(to))
}

fn is_tied(step: &Step, books: &Ledger) -> bool {
    step.moves
        .iter()
        .any(|(guest, ..)| books.guests[*guest as usize].bonds.is_some())
}

/// Groups the steps; `books` are as after all of them.
pub(crate) fn waves(steps: &[Step], books: &Ledger, limits: &Balance) -> Vec<Vec<usize>> {
    let hosts = books.hosts.len();
    let mut free: Vec<Resources> = books.hosts.iter().map(DenseHost::free).collect();
    // In reverse all the way: what is free never goes below nothing, where it would be cut off.
    for (guest, from, to) in steps.iter().rev().flat_map(|step| step.moves.iter().rev()) {
        let size = books.guests[*guest as usize].size;
        free[*to as usize] = free[*to as usize].plus(size);
        free[*from as usize] = free[*from as usize].minus(size);
    }
    let mut waves = Vec::new();
    let mut wave = Wave::new(hosts);
    let mut leaving: Vec<(H, Resources)> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let alone = wave.steps.len() == 1 && steps[wave.steps[0]].moves.len() > 1;
        if alone || !wave.takes(step, &free, books, limits) {
            let full = core::mem::replace(&mut wave, Wave::new(hosts));
            waves.push(full.steps);
            for (host, size) in leaving.drain(..) {
                free[host as usize] = free[host as usize].plus(size);
            }
        }
        for (guest, from, to) in &step.moves {
            let size = books.guests[*guest as usize].size;
            free[*to as usize] = free[*to as usize].minus(size);
            if step.moves.len() > 1 {
                // These go one after the other, each into what the one before has left.
                free[*from as usize] = free[*from as usize].plus(size);
            } else {
                leaving.push((*from, size));
            }
        }
        wave.add(number, step, books);
    }
    if !wave.steps.is_empty() {
        waves.push(wave.steps);
    }
    waves
}
