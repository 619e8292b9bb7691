//! Is every failing set survived? With certificates for single hosts, by enumeration of the
//! sets that sums do not settle for more.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use super::bound::weigh;
use super::ledger::{G, H, Ledger};
use super::packing::{Certificate, Packing, pack, repair};
use crate::model::Resources;

/// Sets of hosts that are packed one by one before the check is cut short.
const MAX_SETS: u32 = 20_000;

/// What a check found.
pub(super) enum Checked {
    /// Everything is survived.
    Safe,
    /// The sum of the room is too small by this much when these hosts fail.
    Short { hosts: Vec<H>, short: Resources },
    /// This guest, among others, finds no host when these hosts fail.
    Homeless { hosts: Vec<H>, guest: G },
    /// Not found out in time.
    Unproved(Vec<H>),
    /// So much over what the percentage allows.
    OverPercent(Resources),
}

/// Where the guests of each host would go, as last found out.
#[derive(Debug, Clone, Default)]
pub(super) struct Certificates {
    by_host: BTreeMap<H, Kept>,
    load: Vec<Resources>,
}

/// A certificate and the version of the ledger for which it was found to hold.
#[derive(Debug, Clone)]
struct Kept {
    certificate: Certificate,
    version: u64,
}

impl Kept {
    /// Did nothing change that it rests on?
    fn untouched(&self, ledger: &Ledger, host: H) -> bool {
        let same = |host: H| ledger.hosts[host as usize].version <= self.version;
        ledger.all_version <= self.version
            && same(host)
            && self.certificate.iter().all(|(_, to)| same(*to))
    }
}

impl Certificates {
    /// Is the loss of any `k` hosts survived?
    pub fn check(&mut self, ledger: &Ledger, k: usize) -> Checked {
        match k {
            0 => verdict(&pack(ledger, &[], &ledger.flags(&[]), 0), Vec::new()),
            1 => self.check_each(ledger),
            _ => check_sets(ledger, k),
        }
    }

    fn check_each(&mut self, ledger: &Ledger) -> Checked {
        let weights = weigh(ledger);
        let settled = ledger.displaced.is_empty();
        self.load.resize(ledger.hosts.len(), Resources::default());
        let mut failed = ledger.flags(&[]);
        for (weight, host) in weights.by_host {
            if settled && weight <= weights.most {
                // Heaviest first: so are all that follow.
                return Checked::Safe;
            }
            failed[host as usize] = true;
            if let Some(found) = self.check_one(ledger, host, &failed) {
                return found;
            }
            failed[host as usize] = false;
        }
        Checked::Safe
    }

    /// What of each host's room no certificate needs: a guest put there breaks none but that
    /// of its own host.
    pub fn spare(&mut self, ledger: &Ledger) -> Vec<Resources> {
        self.load.resize(ledger.hosts.len(), Resources::default());
        let mut peak = vec![Resources::default(); ledger.hosts.len()];
        for kept in self.by_host.values() {
            for (guest, to) in &kept.certificate {
                let at = &mut self.load[*to as usize];
                *at = at.plus(ledger.guests[*guest as usize].size);
                let most = &mut peak[*to as usize];
                most.mcpu = most.mcpu.max(at.mcpu);
                most.memory_mib = most.memory_mib.max(at.memory_mib);
            }
            for (_, to) in &kept.certificate {
                self.load[*to as usize] = Resources::default();
            }
        }
        let hosts = ledger.hosts.iter().zip(peak);
        hosts.map(|(host, peak)| host.free().minus(peak)).collect()
    }

    /// `None`: the loss of this host is survived.
    fn check_one(&mut self, ledger: &Ledger, host: H, failed: &[bool]) -> Option<Checked> {
        let (start, version) = (host + 1, ledger.version);
        if let Some(old) = self.by_host.get_mut(&host) {
            if old.untouched(ledger, host)
                || still_holds(ledger, host, failed, &old.certificate, &mut self.load)
            {
                old.version = version;
                return None;
            }
            if let Some(certificate) = repair(ledger, &[host], failed, &old.certificate, start) {
                *old = Kept {
                    certificate,
                    version,
                };
                return None;
            }
        }
        match pack(ledger, &[host], failed, start) {
            Packing::Fits(certificate) => {
                self.by_host.insert(
                    host,
                    Kept {
                        certificate,
                        version,
                    },
                );
                None
            }
            other => Some(verdict(&other, vec![host])),
        }
    }
}

/// Does the certificate name a place for exactly the guests that would be lost, with room
/// there? Guests bound by rules make it look again.
fn still_holds(
    ledger: &Ledger,
    host: H,
    failed: &[bool],
    old: &Certificate,
    load: &mut [Resources],
) -> bool {
    let lost = &ledger.hosts[host as usize].guests;
    let protected = lost
        .iter()
        .filter(|guest| ledger.guests[**guest as usize].protected)
        .count();
    if old.len() != protected + ledger.displaced.len() {
        return false;
    }
    let mut holds = true;
    let mut loaded = 0;
    for (guest, to) in old {
        let spec = &ledger.guests[*guest as usize];
        let refuge = &ledger.hosts[*to as usize];
        let lost = spec.protected && spec.host == Some(host) || spec.displaced;
        let at = &mut load[*to as usize];
        *at = at.plus(spec.size);
        loaded += 1;
        if !lost
            || spec.bonds.is_some()
            || failed[*to as usize]
            || !refuge.serves
            || !at.fits(refuge.free())
        {
            holds = false;
            break;
        }
    }
    for (_, to) in old.iter().take(loaded) {
        load[*to as usize] = Resources::default();
    }
    holds
}

fn verdict(packing: &Packing, hosts: Vec<H>) -> Checked {
    match packing {
        Packing::Fits(_) => Checked::Safe,
        Packing::Fails(guest) => Checked::Homeless {
            hosts,
            guest: *guest,
        },
        Packing::Unproved => Checked::Unproved(hosts),
    }
}

/// Packs every set of `k` hosts that the sums do not settle, heaviest first.
fn check_sets(ledger: &Ledger, k: usize) -> Checked {
    let weights = weigh(ledger);
    // With guests that wait, or rules on those of a host, sums say nothing.
    let most = if ledger.displaced.is_empty() {
        Some(weights.most)
    } else {
        None
    };
    let mut sets = Sets {
        ledger,
        by_host: &weights.by_host,
        most,
        k,
        left: MAX_SETS,
        set: Vec::new(),
    };
    sets.descend(0, 0).unwrap_or(Checked::Safe)
}

struct Sets<'a> {
    ledger: &'a Ledger,
    by_host: &'a [(u64, H)],
    most: Option<u64>,
    k: usize,
    left: u32,
    set: Vec<H>,
}

impl Sets<'_> {
    fn descend(&mut self, from: usize, weight: u64) -> Option<Checked> {
        let missing = self.k - self.set.len();
        if missing == 0 {
            if self.left == 0 {
                return Some(Checked::Unproved(self.set.clone()));
            }
            self.left -= 1;
            let failed = self.ledger.flags(&self.set);
            let start = self.set[0] + 1;
            return match pack(self.ledger, &self.set, &failed, start) {
                Packing::Fits(_) => None,
                other => Some(verdict(&other, self.set.clone())),
            };
        }
        for next in from..=self.by_host.len() - missing {
            let heaviest = self.by_host[next..next + missing]
                .iter()
                .fold(weight, |sum, (weight, _)| sum.saturating_add(*weight));
            if self.most.is_some_and(|most| heaviest <= most) {
                return None;
            }
            let (one, host) = self.by_host[next];
            self.set.push(host);
            let found = self.descend(next + 1, weight.saturating_add(one));
            self.set.pop();
            if found.is_some() {
                return found;
            }
        }
        None
    }
}
