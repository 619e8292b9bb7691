//! A host is to be emptied: in which order, or what is missing.
//!
//! The largest guests go first, each to the host where it is best off. If not all find
//! room, the plan is made again with each going where it just fits, which keeps large gaps
//! for large guests. A guest that fits nowhere may push one other out of its way.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::admission::Admission;
use crate::balance::{Balance, Plan, Scope, plan_for};
use crate::model::{Cluster, HostId, HostMode};
use crate::settings::Enforcement;

/// Why a host is not emptied, and what would help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// In words and numbers.
    pub because: String,
    /// What would help.
    pub remedies: Vec<String>,
}

/// Plans to empty `host`. `force`: even if afterwards the failures that admission control
/// provides for could not be survived. The plan's `unresolved` names guests that stay.
pub fn evacuate(
    cluster: &Cluster,
    host: &HostId,
    settings: &Balance,
    force: bool,
) -> Result<Plan, Refused> {
    if !cluster.hosts.contains_key(host) {
        return Err(Refused {
            because: format!("there is no host {host}"),
            remedies: Vec::new(),
        });
    }
    let mut settings = settings.clone();
    if force {
        settings.enforcement = Enforcement::Warn;
    }
    if settings.enforcement == Enforcement::Refuse {
        may_rest(cluster, host, &settings)?;
    }
    let mut emptied = cluster.clone();
    if let Some(host) = emptied.hosts.get_mut(host) {
        host.mode = HostMode::Maintenance;
    }
    let best = plan_for(&emptied, &settings, Scope::Empty);
    if best.unresolved.is_empty() {
        return Ok(best);
    }
    let tight = plan_for(&emptied, &settings, Scope::EmptyTightly);
    Ok(if tight.unresolved.len() < best.unresolved.len() {
        tight
    } else {
        best
    })
}

fn may_rest(cluster: &Cluster, host: &str, settings: &Balance) -> Result<(), Refused> {
    Admission::new(cluster, settings.admission)
        .may_rest(host)
        .map_err(|refusal| {
            let mut remedies = refusal.remedies;
            remedies.push("force it, and accept that failures may not be survived".to_string());
            Refused {
                because: refusal.because,
                remedies,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Guest, Host, Resources};
    use crate::settings::AdmissionPolicy;

    fn cluster(guests: &[(&str, &str, u64)]) -> Cluster {
        let mut cluster = Cluster::default();
        for name in ["a", "b", "c"] {
            let host = Host {
                capacity: Resources::new(8000, 16 * 1024),
                ..Host::default()
            };
            cluster.hosts.insert(name.into(), host);
        }
        for (name, at, gib) in guests {
            let mut guest = Guest::sized(Resources::new(0, gib * 1024));
            guest.host = Some((*at).into());
            cluster.guests.insert((*name).into(), guest);
        }
        cluster
    }

    fn off() -> Balance {
        Balance {
            admission: AdmissionPolicy::Off,
            ..Balance::default()
        }
    }

    #[test]
    fn large_gaps_are_kept_for_large_guests() {
        // The best host for g2 (the emptier b) is the only one that takes g1.
        let cluster = cluster(&[
            ("g1", "a", 6),
            ("g2", "a", 6),
            ("g3", "a", 4),
            ("g4", "b", 6),
            ("g5", "c", 10),
        ]);
        let plan = evacuate(&cluster, &"a".into(), &off(), false).expect("is planned");
        assert!(plan.unresolved.is_empty(), "{:?}", plan.unresolved);
        assert_eq!(plan.moves().count(), 3);
        assert!(plan.moves().all(|one| one.from == "a"));
    }

    #[test]
    fn another_guest_makes_room() {
        // g1 needs 12 GiB; b has 10 and c has 4 free: g2 goes from b to c first.
        let cluster = cluster(&[
            ("g1", "a", 12),
            ("g2", "b", 3),
            ("g3", "b", 3),
            ("g4", "c", 12),
        ]);
        let plan = evacuate(&cluster, &"a".into(), &off(), false).expect("is planned");
        assert!(plan.unresolved.is_empty(), "{:?}", plan.unresolved);
        assert_eq!(plan.moves().count(), 2);
    }

    #[test]
    fn admission_is_asked_unless_forced() {
        let cluster = cluster(&[("g1", "a", 10), ("g2", "b", 10)]);
        let settings = Balance::default();
        let host = "c".to_string();
        let refused = evacuate(&cluster, &host, &settings, false).expect_err("is refused");
        assert!(refused.because.starts_with("with c empty"), "{refused:?}");
        let plan = evacuate(&cluster, &host, &settings, true).expect("is forced");
        assert!(plan.steps.is_empty() && plan.unresolved.is_empty());
        assert!(evacuate(&cluster, &"d".into(), &settings, true).is_err());
    }
}
