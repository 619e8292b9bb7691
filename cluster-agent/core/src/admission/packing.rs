//! Do the guests that lost their host fit onto the others? Heuristics first, then a bounded
//! exact search.
//!
//! Guests that stay where they are are not moved: what is packed is what HA would restart.

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use super::ledger::{G, H, Ledger};
use crate::model::Resources;

/// Nodes of the exact search per scenario.
const MAX_NODES: u32 = 50_000;

/// Guests that go to one host together (mostly a single one).
#[derive(Clone)]
pub(super) struct Item {
    guests: Vec<G>,
    size: Resources,
    /// Where fellows that were not lost are; the item has to join them.
    pin: Option<H>,
    /// Rules leave it no host at all.
    impossible: bool,
    bound: bool,
}

/// Where each lost guest would go.
pub(super) type Certificate = Vec<(G, H)>;

/// How packing went.
pub(super) enum Packing {
    /// Everything has a place.
    Fits(Certificate),
    /// Proved: it does not. Names a guest that finds no place.
    Fails(G),
    /// The search was cut short.
    Unproved,
}

/// One scenario: the room that is left and what is packed into it.
pub(super) struct Bins<'a> {
    ledger: &'a Ledger,
    failed: &'a [bool],
    free: Vec<Resources>,
    packed: Vec<(u32, H)>,
}

/// The guests to be packed when the hosts of `failed` fail.
pub(super) fn items(ledger: &Ledger, hosts: &[H], failed: &[bool]) -> Vec<Item> {
    let lost = hosts
        .iter()
        .flat_map(|host| &ledger.hosts[*host as usize].guests)
        .filter(|guest| ledger.guests[**guest as usize].protected)
        .chain(&ledger.displaced)
        .copied();
    let lost: Vec<G> = lost.collect();
    let bound = |guest: &G| ledger.guests[*guest as usize].bonds.is_some();
    let mut items: Vec<Item> = lost
        .iter()
        .filter(|guest| !bound(guest))
        .map(|guest| single(ledger, *guest))
        .collect();
    let mut open: BTreeSet<G> = lost.into_iter().filter(bound).collect();
    while let Some(first) = open.pop_first() {
        items.push(company(ledger, failed, first, &mut open));
    }
    items
}

fn single(ledger: &Ledger, guest: G) -> Item {
    let size = ledger.guests[guest as usize].size;
    Item {
        guests: vec![guest],
        size,
        pin: None,
        impossible: false,
        bound: false,
    }
}

/// A guest with all lost ones it has to be with.
fn company(ledger: &Ledger, failed: &[bool], first: G, open: &mut BTreeSet<G>) -> Item {
    let mut item = Item {
        bound: true,
        ..single(ledger, first)
    };
    let mut next = 0;
    while let Some(guest) = item.guests.get(next).copied() {
        next += 1;
        let bonds = ledger.guests[guest as usize].bonds.iter();
        for fellow in bonds
            .flat_map(|b| &b.togethers)
            .flat_map(|t| &ledger.togethers[*t as usize])
        {
            if open.remove(fellow) {
                item.guests.push(*fellow);
                item.size = item.size.plus(ledger.guests[*fellow as usize].size);
            } else if !item.guests.contains(fellow) {
                // A fellow that stays where it is; one that is gone for good binds nobody.
                let spec = &ledger.guests[*fellow as usize];
                let stays = spec
                    .host
                    .filter(|host| !failed[*host as usize] && ledger.hosts[*host as usize].serves);
                match (stays, item.pin) {
                    (Some(at), Some(pin)) if at != pin => item.impossible = true,
                    (Some(at), _) => item.pin = Some(at),
                    (None, _) => {}
                }
            }
        }
    }
    let aparts: Vec<u32> = item.aparts(ledger).collect();
    let distinct: BTreeSet<u32> = aparts.iter().copied().collect();
    item.impossible |= distinct.len() < aparts.len();
    item
}

impl Item {
    fn aparts<'a>(&'a self, ledger: &'a Ledger) -> impl Iterator<Item = u32> + 'a {
        self.guests
            .iter()
            .filter_map(|guest| ledger.guests[*guest as usize].bonds.as_ref())
            .flat_map(|bonds| bonds.aparts.iter().copied())
    }
}

impl<'a> Bins<'a> {
    pub fn new(ledger: &'a Ledger, failed: &'a [bool]) -> Self {
        let free = ledger
            .hosts
            .iter()
            .map(super::ledger::DenseHost::free)
            .collect();
        Self {
            ledger,
            failed,
            free,
            packed: Vec::new(),
        }
    }

    fn open(&self, host: H) -> bool {
        !self.failed[host as usize] && self.ledger.hosts[host as usize].serves
    }

    fn takes(&self, item: &Item, host: H) -> bool {
        item.size.fits(self.free[host as usize])
            && self.open(host)
            && (!item.bound || self.rules_allow(item, host))
    }

    fn rules_allow(&self, item: &Item, host: H) -> bool {
        !item.impossible
            && item.pin.is_none_or(|pin| pin == host)
            && item.guests.iter().all(|guest| {
                let allowed = self.ledger.guests[*guest as usize].bonds.as_ref();
                let allowed = allowed.and_then(|bonds| bonds.allowed.as_ref());
                allowed.is_none_or(|allowed| allowed[host as usize])
            })
            && item.aparts(self.ledger).all(|apart| {
                !self.ledger.apart_on[apart as usize].contains_key(&host)
                    && !self.packed.contains(&(apart, host))
            })
    }

    fn put(&mut self, item: &Item, host: H) {
        let free = &mut self.free[host as usize];
        *free = free.minus(item.size);
        if item.bound {
            self.packed
                .extend(item.aparts(self.ledger).map(|apart| (apart, host)));
        }
    }

    fn take(&mut self, item: &Item, host: H) {
        let free = &mut self.free[host as usize];
        *free = free.plus(item.size);
        if item.bound {
            let count = item.aparts(self.ledger).count();
            self.packed.truncate(self.packed.len() - count);
        }
    }

    /// Packs each item into the first host that takes it, looking from `start` round.
    /// Returns the place of each, or the first item that found none.
    fn any_fit(&mut self, items: &[Item], start: H) -> Result<Vec<H>, usize> {
        let count = self.free.len() as H;
        let mut places = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let mut round = (start..count).chain(0..start.min(count));
            let host = round.find(|host| self.takes(item, *host)).ok_or(index)?;
            self.put(item, host);
            places.push(host);
        }
        Ok(places)
    }

    /// Packs each item where it leaves the least room.
    fn best_fit(&mut self, items: &[Item]) -> Option<Vec<H>> {
        let mut places = Vec::with_capacity(items.len());
        for item in items {
            let hosts = 0..self.free.len() as H;
            let host = hosts
                .filter(|host| self.takes(item, *host))
                .min_by_key(|host| {
                    let left = self.free[*host as usize].minus(item.size);
                    let whole = self.ledger.hosts[*host as usize].capacity;
                    left.memory_mib * 1024 / whole.memory_mib.max(1)
                        + left.mcpu * 1024 / whole.mcpu.max(1)
                })?;
            self.put(item, host);
            places.push(host);
        }
        Some(places)
    }
}

/// Packs what is lost with `hosts`; `start` spreads the certificates of different scenarios
/// over different refuges.
pub(super) fn pack(ledger: &Ledger, hosts: &[H], failed: &[bool], start: H) -> Packing {
    let mut items = items(ledger, hosts, failed);
    sort(ledger, &mut items);
    let mut bins = Bins::new(ledger, failed);
    if let Ok(places) = bins.any_fit(&items, start) {
        return Packing::Fits(certificate(&items, &places));
    }
    bins = Bins::new(ledger, failed);
    if let Some(lonely) = items
        .iter()
        .find(|item| !(0..bins.free.len() as H).any(|h| bins.takes(item, h)))
    {
        return Packing::Fails(lonely.guests[0]);
    }
    if let Some(places) = bins.best_fit(&items) {
        return Packing::Fits(certificate(&items, &places));
    }
    bins = Bins::new(ledger, failed);
    let mut search = Search {
        items: &items,
        places: Vec::new(),
        nodes: 0,
        deepest: 0,
    };
    match search.descend(&mut bins) {
        Some(true) => Packing::Fits(certificate(&items, &search.places)),
        Some(false) => Packing::Fails(items[search.deepest.min(items.len() - 1)].guests[0]),
        None => Packing::Unproved,
    }
}

/// Keeps what of an old certificate still holds and finds new places for the rest.
pub(super) fn repair(
    ledger: &Ledger,
    hosts: &[H],
    failed: &[bool],
    old: &Certificate,
    start: H,
) -> Option<Certificate> {
    let items = items(ledger, hosts, failed);
    let mut bins = Bins::new(ledger, failed);
    let (mut kept, mut places, mut homeless) = (Vec::new(), Vec::new(), Vec::new());
    for item in items {
        let known = old
            .iter()
            .find(|(guest, _)| *guest == item.guests[0])
            .map(|(_, host)| *host);
        match known.filter(|host| bins.takes(&item, *host)) {
            Some(host) => {
                bins.put(&item, host);
                places.push(host);
                kept.push(item);
            }
            None => homeless.push(item),
        }
    }
    sort(ledger, &mut homeless);
    let found = bins.any_fit(&homeless, start).ok()?;
    let mut new = certificate(&kept, &places);
    new.extend(certificate(&homeless, &found));
    Some(new)
}

fn certificate(items: &[Item], places: &[H]) -> Certificate {
    items
        .iter()
        .zip(places)
        .flat_map(|(item, host)| item.guests.iter().map(|guest| (*guest, *host)))
        .collect()
}

/// Hardest first: bound by rules, then large.
fn sort(ledger: &Ledger, items: &mut [Item]) {
    let whole = ledger
        .hosts
        .iter()
        .fold(Resources::default(), |most, host| Resources {
            mcpu: most.mcpu.max(host.capacity.mcpu),
            memory_mib: most.memory_mib.max(host.capacity.memory_mib),
        });
    items.sort_by_cached_key(|item| {
        let share = (item.size.mcpu * 1024 / whole.mcpu.max(1))
            .max(item.size.memory_mib * 1024 / whole.memory_mib.max(1));
        (
            !item.bound,
            core::cmp::Reverse((share, item.size)),
            item.guests[0],
        )
    });
}

struct Search<'a> {
    items: &'a [Item],
    places: Vec<H>,
    nodes: u32,
    deepest: usize,
}

impl Search<'_> {
    /// Places the next item in every way that matters. `None`: out of nodes.
    fn descend(&mut self, bins: &mut Bins<'_>) -> Option<bool> {
        let depth = self.places.len();
        self.deepest = self.deepest.max(depth);
        let Some(item) = self.items.get(depth) else {
            return Some(true);
        };
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return None;
        }
        if !self.rest_could_fit(bins, depth) {
            return Some(false);
        }
        // Of equal items the later never goes to an earlier host, and of hosts with equal room
        // only the first is tried: the rest would be the same again. Items bound by rules
        // tell hosts apart; they come first, so that none follows one that is not.
        let first = match depth
            .checked_sub(1)
            .map(|last| (&self.items[last], self.places[last]))
        {
            Some((last, host)) if !item.bound && !last.bound && last.size == item.size => host,
            _ => 0,
        };
        let mut seen: BTreeSet<Resources> = BTreeSet::new();
        for host in first..bins.free.len() as H {
            if !bins.takes(item, host) {
                continue;
            }
            if !item.bound && !seen.insert(bins.free[host as usize]) {
                continue;
            }
            bins.put(item, host);
            self.places.push(host);
            match self.descend(bins) {
                Some(false) => {}
                done => return done,
            }
            self.places.pop();
            bins.take(item, host);
        }
        Some(false)
    }

    fn rest_could_fit(&self, bins: &Bins<'_>, depth: usize) -> bool {
        let rest = &self.items[depth..];
        let need = rest
            .iter()
            .fold(Resources::default(), |sum, item| sum.plus(item.size));
        let open = (0..bins.free.len() as H).filter(|host| bins.open(*host));
        let room = open.fold(Resources::default(), |sum, h| {
            sum.plus(bins.free[h as usize])
        });
        need.fits(room)
    }
}
