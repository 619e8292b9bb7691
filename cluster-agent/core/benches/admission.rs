//! How long a power-on verdict takes at 1000 hosts and 10 000 guests, once warm.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::time::{Duration, Instant};

use cluster_core::admission::Admission;
use cluster_core::model::{Cluster, Desired, Guest, GuestId, Host, Resources, Rule};
use cluster_core::settings::AdmissionPolicy;
use criterion::{Criterion, criterion_group, criterion_main};

const HOSTS: u64 = 1000;
const GUESTS: u64 = 10_000;

/// Hosts of 64 GiB, each with ten guests of unlike sizes that reserve `percent` of its
/// memory, give or take 4. Every `bound`-th guest is kept apart from two others.
fn cluster(percent: u64, bound: u64) -> Cluster {
    let capacity = Resources::new(64_000, 64 * 1024);
    let mut cluster = Cluster::default();
    for i in 0..HOSTS {
        cluster.hosts.insert(
            format!("h{i:04}"),
            Host {
                capacity,
                ..Host::default()
            },
        );
    }
    for i in 0..GUESTS {
        let (host, share) = (i % HOSTS, 5 + (i / HOSTS + i) % 10 + i % HOSTS % 2);
        let percent = percent + host * 7 % 9 - 4;
        // The shares of ten guests sum to 95 or 105.
        let memory = capacity.memory_mib * percent / 100 * share / (95 + host % 2 * 10);
        let mut guest = Guest::sized(Resources::new(500, memory));
        guest.host = Some(format!("h{host:04}"));
        cluster.guests.insert(format!("g{i:05}"), guest);
    }
    for i in (0..GUESTS).step_by(bound as usize) {
        let guests: BTreeSet<GuestId> = (0..3)
            .map(|j| format!("g{:05}", (i + j) % GUESTS))
            .collect();
        cluster
            .rules
            .insert(format!("r{i}"), Rule::KeepApart { guests });
    }
    cluster
}

fn verdicts(c: &mut Criterion) {
    let none = GUESTS + 1;
    let cases = [
        ("50 % reserved", 50, none, 1, 4),
        ("80 % reserved", 80, none, 1, 4),
        ("95 % reserved", 95, none, 1, 4),
        ("80 % reserved, 1000 rules", 80, 10, 1, 4),
        ("95 % reserved, 1000 rules", 95, 10, 1, 4),
        ("too large for any host", 80, none, 1, 60),
        ("80 % reserved, k = 2", 80, none, 2, 4),
    ];
    for (name, percent, bound, k, gib) in cases {
        let cluster = cluster(percent, bound);
        let policy = AdmissionPolicy::TolerateHostFailures(k);
        let begun = Instant::now();
        let mut admission = Admission::new(&cluster, policy);
        let safe = admission.safe();
        let cold = begun.elapsed();
        let guest = Guest {
            desired: Desired::Running,
            ..Guest::sized(Resources::new(500, gib * 1024))
        };
        let fresh = GuestId::from("new");
        let verdict = admission.may_start(&fresh, &guest);
        println!(
            "{name}: cold {cold:?}, safe now: {}, verdict: {}",
            safe.is_ok(),
            verdict.map_or_else(
                |no| format!("{} (proved: {})", no.because, no.proved),
                |yes| yes.because
            )
        );
        c.bench_function(name, |b| {
            b.iter(|| black_box(admission.may_start(&fresh, &guest).is_ok()));
        });
    }
}

/// A cluster fills up from 90 % until the first refusal: every start counts for the next.
fn filling(_: &mut Criterion) {
    let cluster = cluster(90, GUESTS + 1);
    let mut admission = Admission::new(&cluster, AdmissionPolicy::TolerateHostFailures(1));
    let guest = Guest::sized(Resources::new(100, 2048));
    let mut took = Vec::new();
    loop {
        let begun = Instant::now();
        let verdict = admission.start(&format!("n{}", took.len()), &guest);
        took.push(begun.elapsed());
        if let Err(refusal) = verdict {
            println!(
                "filling up: refused after {} starts: {}",
                took.len() - 1,
                refusal.because
            );
            break;
        }
    }
    let refused = took.pop().unwrap_or_default();
    took.sort();
    let part = |permille: usize| took[took.len() * permille / 1000];
    println!(
        "filling up: p50 {:?}, p99 {:?}, worst {:?}, refusal {refused:?}",
        part(500),
        part(990),
        took[took.len() - 1]
    );
}

/// A leader that is asked: its books follow what happened since, here one guest that moved.
fn asked(c: &mut Criterion) {
    let mut cluster = cluster(80, 10);
    let policy = AdmissionPolicy::TolerateHostFailures(1);
    let mut admission = Admission::new(&cluster, policy);
    let guest = Guest::sized(Resources::new(500, 4 * 1024));
    let (moved, fresh) = (GuestId::from("g05000"), GuestId::from("new"));
    let mut to = ["h0001", "h0002"].into_iter().cycle();
    c.bench_function("80 % reserved, 1000 rules, after one migration", |b| {
        b.iter(|| {
            if let Some(guest) = cluster.guests.get_mut(&moved) {
                guest.host = to.next().map(GuestId::from);
            }
            assert!(admission.follow(&cluster, policy), "same hosts, same rules");
            black_box(admission.may_start(&fresh, &guest).is_ok())
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    targets = verdicts, asked, filling
}
criterion_main!(benches);
