//! Skewed clusters from a seed: what the planner is measured and tested with.

use std::collections::BTreeSet;

use cluster_core::model::{Affinity, Cluster, Guest, Host, Resources, Rule};

use crate::rng::Rng;

/// How large, and how crooked.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Hosts.
    pub hosts: u64,
    /// Guests.
    pub guests: u64,
    /// Keep-apart, keep-together and guest-host rules, so many of each.
    pub rules: u64,
}

/// The five sizes of the benchmark.
pub const SIZES: [Size; 5] = [
    size(4, 40),
    size(10, 120),
    size(40, 600),
    size(200, 2000),
    size(1000, 10_000),
];

const fn size(hosts: u64, guests: u64) -> Size {
    Size {
        hosts,
        guests,
        rules: 0,
    }
}

/// Cores and memory of a host.
const HOST: Resources = Resources {
    mcpu: 64_000,
    memory_mib: 512 * 1024,
};

/// A cluster whose first hosts carry most of the guests. All rules hold and all guests fit.
pub fn cluster(seed: u64, size: Size) -> Cluster {
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::default();
    for number in 0..size.hosts {
        let host = Host {
            capacity: HOST,
            groups: BTreeSet::from([format!("rack{}", number % 4)]),
            ..Host::default()
        };
        cluster.hosts.insert(host_name(number), host);
    }
    let mut free = vec![HOST; size.hosts as usize];
    for number in 0..size.guests {
        let mut guest = guest(&mut rng, size);
        // The lesser of two draws leans to the first hosts.
        let lean = rng.below(size.hosts).min(rng.below(size.hosts));
        let at = (0..size.hosts)
            .map(|step| (lean + step) % size.hosts)
            .find(|host| guest.reservation.fits(free[*host as usize]));
        if let Some(at) = at {
            free[at as usize] = free[at as usize].minus(guest.reservation);
            guest.host = Some(host_name(at));
            cluster.guests.insert(format!("guest{number:05}"), guest);
        }
    }
    add_rules(&mut rng, &mut cluster, size);
    cluster
}

/// The name of a host by its number.
pub fn host_name(number: u64) -> String {
    format!("host{number:04}")
}

fn guest(rng: &mut Rng, size: Size) -> Guest {
    let cores = *rng.pick(&[1, 1, 2, 2, 2, 4, 4, 8]);
    // About half of all memory is given out, whatever the number of guests per host.
    let scale = size.hosts * HOST.memory_mib / 1024 / 2 / size.guests;
    let gib = (scale * *rng.pick(&[1, 2, 2, 4, 4, 8, 8, 16]) / 6).max(1);
    let configured = Resources::new(cores * 1000, gib * 1024);
    let mut guest = Guest::sized(configured);
    guest.reservation.mcpu = 0;
    guest.demand = Resources {
        mcpu: cores * rng.between(50, 1000),
        memory_mib: gib * rng.between(200, 900),
    };
    guest
}

/// Rules that the present state obeys.
fn add_rules(rng: &mut Rng, cluster: &mut Cluster, size: Size) {
    let names: Vec<String> = cluster.guests.keys().cloned().collect();
    let at = |cluster: &Cluster, name: &String| cluster.guests[name].host.clone();
    let mut taken: BTreeSet<String> = BTreeSet::new();
    for number in 0..size.rules {
        let (a, b) = (rng.pick(&names).clone(), rng.pick(&names).clone());
        if a == b || !taken.insert(a.clone()) || !taken.insert(b.clone()) {
            continue;
        }
        let pair = BTreeSet::from([a.clone(), b.clone()]);
        let rule = if at(cluster, &a) == at(cluster, &b) {
            Rule::KeepTogether { guests: pair }
        } else {
            Rule::KeepApart { guests: pair }
        };
        cluster.rules.insert(format!("pair{number:04}"), rule);
        let bound = rng.pick(&names).clone();
        if !taken.insert(bound.clone()) {
            continue;
        }
        let Some(host) = at(cluster, &bound) else {
            continue;
        };
        let rule = Rule::GuestsToHosts {
            guests: BTreeSet::from([bound]),
            group: cluster.hosts[&host]
                .groups
                .first()
                .cloned()
                .unwrap_or_default(),
            affinity: Affinity::On,
            hard: rng.chance(500),
        };
        cluster.rules.insert(format!("rack{number:04}"), rule);
    }
}
