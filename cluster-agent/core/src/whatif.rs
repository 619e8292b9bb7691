//! What if? Plans for a cluster that is described in a file, or that is changed first.

mod file;
mod restart;

use alloc::string::{String, ToString};
use alloc::vec::Vec;

pub use file::{FILE_VERSION, FileGuest, FileHost, InventoryFile};
pub use restart::{Restart, restart};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::admission::Admission;
use crate::balance::{Balance, Plan, plan};
use crate::model::{Cluster, GroupId, GuestId, Host, HostId, HostMode, Resources};

/// What to change first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// New, empty hosts; like the largest there is where no size is given.
    pub add: Vec<(HostId, Option<Resources>)>,
    /// Hosts that fail: their guests are restarted elsewhere.
    pub lose: Vec<HostId>,
    /// Hosts to be emptied.
    pub drain: Vec<HostId>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WhatIfError {
    /// The file is of another version.
    #[error("cannot read the inventory: it has version {0}, this program reads version 1")]
    Version(u32),
    /// Something names a host that is not there.
    #[error(
        "cannot use the inventory: {by} names host {host}, which is not in it; add it to hosts"
    )]
    NoHost {
        /// What names it.
        by: String,
        /// The host.
        host: HostId,
    },
    /// A rule names a guest that is not there.
    #[error("cannot use the inventory: rule {rule} names guest {guest}, which is not in it")]
    NoGuest {
        /// The rule.
        rule: String,
        /// The guest.
        guest: GuestId,
    },
    /// An amount that no host or guest has.
    #[error("cannot use the inventory: {of} has {field} {value}; give it {least} to {most}")]
    Amount {
        /// Of what.
        of: String,
        /// What it is called there.
        field: &'static str,
        /// What it is.
        value: u64,
        /// What it may be at least ...
        least: u64,
        /// ... and at most.
        most: u64,
    },
    /// A rule names hosts that are not there.
    #[error(
        "cannot use the inventory: rule {rule} names group {group}, to which no host belongs; add \
         it to the groups of a host"
    )]
    NoGroup {
        /// The rule.
        rule: String,
        /// The group.
        group: GroupId,
    },
    /// Rules that cannot all be obeyed.
    #[error("cannot use the inventory: {why} (rules {rules}); change or remove one of them")]
    Contradiction {
        /// Their names.
        rules: String,
        /// Why not.
        why: String,
    },
    /// The question asks for two things at once.
    #[error("cannot both lose and drain host {0}; ask one of them")]
    LostAndDrained(HostId),
    /// A host to be added is there already.
    #[error("cannot add host {0}: there is one of that name; choose another")]
    HostTwice(HostId),
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Forecast {
    /// What becomes of the guests of lost hosts.
    pub restarts: Vec<Restart>,
    /// What DRS would then do.
    pub plan: Plan,
    /// Why the failures that admission control provides for could not be survived after
    /// that; empty if they could.
    pub at_risk: String,
}

/// Changes the cluster and plans for what comes out.
pub fn what_if(
    mut cluster: Cluster,
    changes: &Changes,
    settings: &Balance,
) -> Result<Forecast, WhatIfError> {
    add_hosts(&mut cluster, changes)?;
    if let Some(both) = changes
        .lose
        .iter()
        .find(|host| changes.drain.contains(host))
    {
        return Err(WhatIfError::LostAndDrained(both.clone()));
    }
    for (names, mode) in [
        (&changes.lose, HostMode::Lost),
        (&changes.drain, HostMode::Maintenance),
    ] {
        for name in names {
            let host = cluster.hosts.get_mut(name);
            host.ok_or_else(|| WhatIfError::NoHost {
                by: "the question".to_string(),
                host: name.clone(),
            })?
            .mode = mode;
        }
    }
    let restarts = restart(&mut cluster);
    let plan = plan(&cluster, settings);
    plan.apply(&mut cluster);
    let at_risk = Admission::new(&cluster, settings.admission)
        .safe()
        .err()
        .map_or_else(String::new, |refusal| refusal.because);
    Ok(Forecast {
        restarts,
        plan,
        at_risk,
    })
}

fn add_hosts(cluster: &mut Cluster, changes: &Changes) -> Result<(), WhatIfError> {
    let largest = cluster
        .hosts
        .values()
        .map(|host| host.capacity)
        .max_by_key(|capacity| (capacity.memory_mib, capacity.mcpu))
        .unwrap_or_default();
    for (name, size) in &changes.add {
        let capacity = size.unwrap_or(largest);
        file::check_host(name, capacity)?;
        let host = Host {
            capacity,
            ..Host::default()
        };
        if cluster.hosts.insert(name.clone(), host).is_some() {
            return Err(WhatIfError::HostTwice(name.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> InventoryFile {
        let host = FileHost {
            cores: 8,
            memory_mib: 16 * 1024,
            mode: HostMode::Active,
            groups: alloc::collections::BTreeSet::new(),
        };
        let guest = |host: &str| FileGuest {
            host: Some(host.into()),
            cpus: 2,
            memory_mib: 2048,
            demand_mcpu: Some(1500),
            active_mib: Some(512),
            reserved_mcpu: 0,
            reserved_mib: None,
            movable: true,
            protected: true,
            migration_ms: 0,
        };
        let mut file = InventoryFile {
            version: 1,
            ..InventoryFile::default()
        };
        for name in ["a", "b"] {
            file.hosts.insert(name.into(), host.clone());
        }
        for name in ["g1", "g2", "g3", "g4"] {
            file.guests.insert(name.into(), guest("a"));
        }
        file
    }

    fn ask(changes: &Changes) -> Result<Forecast, WhatIfError> {
        what_if(file().cluster()?, changes, &Balance::default())
    }

    #[test]
    fn the_file_is_balanced() {
        let forecast = ask(&Changes::default()).expect("an answer");
        assert_eq!(forecast.plan.moves().count(), 1);
        assert_eq!(forecast.at_risk, "");
    }

    #[test]
    fn guests_of_a_host_that_is_emptied_wait_there_too() {
        let changes = Changes {
            drain: Vec::from(["a".into()]),
            ..Changes::default()
        };
        let [as_it_is, drained] = [Changes::default(), changes].map(|changes| ask(&changes));
        let before = |forecast: Result<Forecast, _>| forecast.expect("an answer").plan.before;
        assert_eq!(before(as_it_is).waiting_mcpu, before(drained).waiting_mcpu);
    }

    #[test]
    fn a_lost_hosts_guests_restart_and_an_added_host_helps() {
        let mut changes = Changes {
            lose: Vec::from(["a".into()]),
            ..Changes::default()
        };
        let forecast = ask(&changes).expect("an answer");
        assert_eq!(forecast.restarts.len(), 4);
        assert!(
            forecast
                .restarts
                .iter()
                .all(|one| one.host.as_deref() == Some("b"))
        );
        changes.add.push(("c".into(), None));
        let forecast = ask(&changes).expect("an answer");
        let on_c = forecast
            .restarts
            .iter()
            .filter(|one| one.host.as_deref() == Some("c"));
        assert_eq!(on_c.count(), 2);
    }

    #[test]
    fn a_drained_host_is_emptied() {
        let changes = Changes {
            drain: Vec::from(["a".into()]),
            ..Changes::default()
        };
        assert_eq!(ask(&changes).expect("an answer").plan.moves().count(), 4);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let changes = Changes {
            drain: Vec::from(["z".into()]),
            ..Changes::default()
        };
        let error = ask(&changes).expect_err("no such host").to_string();
        assert!(error.contains("host z"), "{error}");
        let mut wrong = file();
        wrong.version = 2;
        assert_eq!(wrong.cluster(), Err(WhatIfError::Version(2)));
    }

    #[test]
    fn what_cannot_be_is_named_with_a_remedy() {
        let refused = |change: &dyn Fn(&mut InventoryFile)| {
            let mut file = file();
            change(&mut file);
            file.cluster().expect_err("a refusal").to_string()
        };
        let pair = ["g1".to_string(), "g2".to_string()];
        let apart = crate::model::Rule::KeepApart {
            guests: pair.clone().into(),
        };
        let together = crate::model::Rule::KeepTogether {
            guests: pair.clone().into(),
        };
        let on_nothing = crate::model::Rule::GuestsToHosts {
            guests: pair.into(),
            group: "rack9".into(),
            affinity: crate::model::Affinity::Off,
            hard: true,
        };
        let cores = refused(&|file| file.hosts.get_mut("a").expect("a").cores = 0);
        assert!(
            cores.contains("host a has cores 0; give it 1 to 65536"),
            "{cores}"
        );
        let cpus = refused(&|file| file.guests.get_mut("g1").expect("g1").cpus = u64::MAX);
        assert!(cpus.contains("guest g1 has cpus"), "{cpus}");
        let demand = refused(&|file| {
            file.guests.get_mut("g1").expect("g1").demand_mcpu = Some(2001);
        });
        assert!(
            demand.contains("guest g1 has demand-mcpu 2001; give it 0 to 2000"),
            "{demand}"
        );
        let group = refused(&|file| {
            file.rules.insert("here".into(), on_nothing.clone());
        });
        assert!(group.contains("rule here names group rack9"), "{group}");
        let both = refused(&|file| {
            file.rules.insert("one".into(), apart.clone());
            file.rules.insert("two".into(), together.clone());
        });
        assert!(both.contains("(rules one, two)"), "{both}");
        let changes = Changes {
            lose: ["a".to_string()].into(),
            drain: ["a".to_string()].into(),
            ..Changes::default()
        };
        assert_eq!(ask(&changes), Err(WhatIfError::LostAndDrained("a".into())));
    }
}
