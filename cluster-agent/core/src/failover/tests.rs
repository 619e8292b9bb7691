//! What becomes of starts that fail.

use alloc::string::ToString;

use super::*;
use crate::model::{Guest, Host, Resources};

const SECOND: u64 = 1_000_000;

struct Stage {
    cluster: Cluster,
    whereabouts: BTreeMap<GuestId, Whereabouts>,
    owners: Owners,
    settings: Settings,
}

impl Stage {
    /// Three hosts, and a guest that none of them runs.
    fn set(start_attempts: u32) -> Self {
        let host = Host {
            capacity: Resources::new(8000, 8192),
            ..Host::default()
        };
        let guest = Guest::sized(Resources::new(1000, 1024));
        let hosts = ["a", "b", "c"].map(|name| (name.to_string(), host.clone()));
        Self {
            cluster: Cluster {
                hosts: hosts.into(),
                guests: [("web".to_string(), guest)].into(),
                rules: BTreeMap::new(),
            },
            whereabouts: [("web".to_string(), Whereabouts::Lost(1, Loss::Free))].into(),
            owners: Owners::default(),
            settings: Settings {
                start_attempts,
                ..Settings::default()
            },
        }
    }

    fn now(&self) -> Situation<'_> {
        Situation {
            cluster: &self.cluster,
            whereabouts: &self.whereabouts,
            owners: &self.owners,
            settings: &self.settings,
        }
    }
}

#[test]
fn a_start_that_fails_is_tried_elsewhere_and_given_up_in_the_end_and_all_is_said() {
    let stage = Stage::set(5);
    let web = "web".to_string();
    let why = StartOutcome::Failed {
        why: "no /dev/kvm".to_string(),
    };
    let mut failover = Failover::default();
    let (mut tried, mut waits) = (Vec::new(), Vec::new());
    for now_us in (0..3600 * SECOND).step_by(SECOND as usize) {
        for decision in failover.step(now_us, &stage.now()) {
            match decision {
                Decision::Order { host, guest, .. } => {
                    tried.push(host.clone());
                    let said = failover.answered(now_us, &host, &guest, &why, &stage.settings);
                    let Some(Decision::Failed { because, .. }) = said else {
                        panic!("{said:?}");
                    };
                    let attempt = format!("attempt {} of 5 on {host}: no /dev/kvm", tried.len());
                    assert!(because.starts_with(&attempt), "{because}");
                }
                Decision::Waits { because, .. } => waits.push(because),
                Decision::Failed { because, .. } => panic!("{because}"),
            }
        }
    }
    assert_eq!(tried.len(), 5, "{tried:?}");
    tried[..3].sort();
    assert_eq!(tried[..3], ["a", "b", "c"], "each host once, then anew");
    let [given_up] = &waits[..] else {
        panic!("said once: {waits:?}");
    };
    let last = format!(
        "given up after 5 attempts, the last on {}: no /dev/kvm",
        tried[4]
    );
    assert_eq!(*given_up, last);
    assert_eq!(failover.failed_starts(&web), 5);
    assert!(
        failover
            .waiting()
            .any(|(guest, why)| *guest == web && *why == last)
    );
    failover.forgive(Some(&web));
    let again = failover.step(3600 * SECOND, &stage.now());
    assert!(matches!(again[..], [Decision::Order { .. }]), "{again:?}");
}

#[test]
fn an_order_that_nobody_answers_has_failed() {
    let stage = Stage::set(5);
    let mut failover = Failover::default();
    let ordered = failover.step(0, &stage.now());
    let [Decision::Order { host, .. }] = &ordered[..] else {
        panic!("{ordered:?}");
    };
    assert!(failover.step(4 * SECOND, &stage.now()).is_empty());
    let late = failover.step(5 * SECOND, &stage.now());
    let [
        Decision::Failed { because, .. },
        Decision::Order { host: next, .. },
    ] = &late[..]
    else {
        panic!("{late:?}");
    };
    assert!(because.contains("no answer within 5000 ms"), "{because}");
    assert_ne!(host, next);
}
