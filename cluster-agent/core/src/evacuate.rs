//! A host is to be emptied: in which order, or what is missing.
//!
//! The largest guests go first, each to the host where it is best off. If not all find
//! room, the plan is made again with each going where it just fits, which keeps large gaps
//! for large guests. A guest that fits nowhere may push one other out of its way.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::admission::Admission;
use serde::{Deserialize, Serialize};

use crate::balance::{Balance, Move, Plan, Scope, plan_for};
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
    if settings.enforcement == Enforcement::Refuse
        && let Some(objection) = objection(cluster, host, &settings)
    {
        return Err(objection);
    }
    let mut emptied = cluster.clone();
    if let Some(host) = emptied.hosts.get_mut(host) {
        host.mode = HostMode::Maintenance;
    }
    Ok(empty(&emptied, &settings))
}

/// Plans to empty all hosts that are in maintenance.
pub(crate) fn empty(cluster: &Cluster, settings: &Balance) -> Plan {
    let best = plan_for(cluster, settings, Scope::Empty);
    if best.unresolved.is_empty() {
        return best;
    }
    let tight = plan_for(cluster, settings, Scope::EmptyTightly);
    if tight.unresolved.len() < best.unresolved.len() {
        tight
    } else {
        best
    }
}

/// One host's turn in a rolling maintenance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Turn {
    /// The host.
    pub host: HostId,
    /// What has to move before it can be taken down; nothing where it is refused.
    pub moves: Vec<Move>,
    /// Memory of the guests that move.
    pub memory_mib: u64,
    /// Predicted time on the wire of all moves.
    pub migration_ms: u64,
    /// What stands against it, in words; empty when nothing does.
    pub against: Vec<String>,
}

/// Plans to empty one host after the other, each coming back before the next goes.
pub fn rolling(cluster: &Cluster, order: &[HostId], settings: &Balance) -> Vec<Turn> {
    let mut cluster = cluster.clone();
    let turn = |host: &HostId| {
        let mut turn = Turn {
            host: host.clone(),
            moves: Vec::new(),
            memory_mib: 0,
            migration_ms: 0,
            against: Vec::new(),
        };
        match evacuate(&cluster, host, settings, false) {
            Ok(plan) => {
                turn.moves = plan.moves().cloned().collect();
                turn.memory_mib = plan.memory_mib();
                turn.migration_ms = plan.steps.iter().map(|step| step.migration_ms).sum();
                let stays = plan.unresolved.iter();
                turn.against = stays
                    .map(|one| format!("{}: {}", one.what, one.because))
                    .collect();
                plan.apply(&mut cluster);
            }
            Err(refused) => turn.against.push(refused.because),
        }
        turn
    };
    order.iter().map(turn).collect()
}

/// What admission control has against taking `host` out of service, whether or not that is obeyed.
pub fn objection(cluster: &Cluster, host: &str, settings: &Balance) -> Option<Refused> {
    let mut admission = Admission::new(cluster, settings.admission);
    admission.may_rest(host).err().map(|refusal| {
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
    fn hosts_take_their_turns_on_what_the_ones_before_left() {
        let cluster = cluster(&[("g1", "a", 4), ("g2", "b", 4), ("g3", "c", 4)]);
        let order = ["a", "b", "c"].map(String::from);
        let turns = rolling(&cluster, &order, &Balance::default());
        assert!(
            turns.iter().all(|turn| turn.against.is_empty()),
            "{turns:?}"
        );
        assert_eq!(turns[0].moves.len(), 1);
        let moved: usize = turns.iter().map(|turn| turn.moves.len()).sum();
        assert!(moved > 3, "what came from a moves again: {turns:?}");
        let cluster = cluster_full();
        let turns = rolling(&cluster, &order, &Balance::default());
        assert!(
            turns.iter().all(|turn| !turn.against.is_empty()),
            "{turns:?}"
        );
    }

    fn cluster_full() -> Cluster {
        cluster(&[("g1", "a", 12), ("g2", "b", 12), ("g3", "c", 12)])
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

    #[test]
    fn where_admission_only_warns_it_does_so() {
        let cluster = cluster(&[("g1", "a", 10), ("g2", "b", 10)]);
        let settings = Balance {
            enforcement: Enforcement::Warn,
            ..Balance::default()
        };
        let host = "c".to_string();
        assert!(evacuate(&cluster, &host, &settings, false).is_ok());
        let warning = objection(&cluster, &host, &settings).expect("there is one");
        assert!(warning.because.starts_with("with c empty"), "{warning:?}");
        assert_eq!(objection(&cluster, &host, &off()), None);
    }
}
