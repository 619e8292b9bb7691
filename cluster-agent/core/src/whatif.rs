//! What if? Plans for a cluster that is described in a file, or that is changed first.

mod restart;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

pub use restart::{Restart, restart};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::admission::Admission;
use crate::balance::{Balance, Plan, plan};
use crate::model::{Cluster, GroupId, Guest, GuestId, Host, HostId, HostMode, Resources, Rule};

/// The version of the file that this program writes and reads.
pub const FILE_VERSION: u32 = 1;

/// An inventory file. See docs/drs.md.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct InventoryFile {
    /// [`FILE_VERSION`].
    pub version: u32,
    /// Hosts by name.
    pub hosts: BTreeMap<HostId, FileHost>,
    /// Guests by name.
    pub guests: BTreeMap<GuestId, FileGuest>,
    /// Rules by name.
    #[serde(default)]
    pub rules: BTreeMap<String, Rule>,
}

/// A host in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FileHost {
    /// Cores for guests.
    pub cores: u64,
    /// Memory for guests.
    pub memory_mib: u64,
    /// What it may be asked to do.
    #[serde(default)]
    pub mode: HostMode,
    /// Its groups.
    #[serde(default)]
    pub groups: BTreeSet<GroupId>,
}

/// A guest in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FileGuest {
    /// Where it runs.
    pub host: Option<HostId>,
    /// Its virtual processors.
    pub cpus: u64,
    /// Its memory.
    pub memory_mib: u64,
    /// The CPU it wants, in thousandths of a core; all its processors if not given.
    pub demand_mcpu: Option<u64>,
    /// The memory it uses actively; all if not given.
    pub active_mib: Option<u64>,
    /// The CPU guaranteed to it.
    #[serde(default)]
    pub reserved_mcpu: u64,
    /// The memory guaranteed to it; all if not given.
    pub reserved_mib: Option<u64>,
    /// May be moved automatically.
    #[serde(default = "yes")]
    pub movable: bool,
    /// Restarted when its host is lost.
    #[serde(default = "yes")]
    pub protected: bool,
    /// Predicted time of a migration on the wire; estimated from the memory if not given.
    #[serde(default)]
    pub migration_ms: u64,
}

fn yes() -> bool {
    true
}

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

impl InventoryFile {
    /// The cluster it describes.
    pub fn cluster(&self) -> Result<Cluster, WhatIfError> {
        if self.version != FILE_VERSION {
            return Err(WhatIfError::Version(self.version));
        }
        for (name, guest) in &self.guests {
            if let Some(host) = &guest.host
                && !self.hosts.contains_key(host)
            {
                return Err(WhatIfError::NoHost {
                    by: alloc::format!("guest {name}"),
                    host: host.clone(),
                });
            }
        }
        for (rule, guest) in self
            .rules
            .iter()
            .flat_map(|(name, rule)| rule.guests().iter().map(move |guest| (name, guest)))
        {
            if !self.guests.contains_key(guest) {
                return Err(WhatIfError::NoGuest {
                    rule: rule.clone(),
                    guest: guest.clone(),
                });
            }
        }
        Ok(Cluster {
            hosts: self
                .hosts
                .iter()
                .map(|(n, h)| (n.clone(), h.host()))
                .collect(),
            guests: self
                .guests
                .iter()
                .map(|(n, g)| (n.clone(), g.guest()))
                .collect(),
            rules: self.rules.clone(),
        })
    }
}

impl FileHost {
    fn host(&self) -> Host {
        Host {
            capacity: Resources::new(self.cores.saturating_mul(1000), self.memory_mib),
            mode: self.mode,
            groups: self.groups.clone(),
        }
    }
}

impl FileGuest {
    fn guest(&self) -> Guest {
        let configured = Resources::new(self.cpus.saturating_mul(1000), self.memory_mib);
        let mut guest = Guest::sized(configured);
        guest.host.clone_from(&self.host);
        guest.reservation = Resources {
            mcpu: self.reserved_mcpu,
            memory_mib: self.reserved_mib.unwrap_or(self.memory_mib),
        };
        guest.demand = Resources {
            mcpu: self.demand_mcpu.unwrap_or(configured.mcpu),
            memory_mib: self.active_mib.unwrap_or(self.memory_mib),
        };
        guest.movable = self.movable;
        guest.protected = self.protected;
        guest.migration.duration_ms = self.migration_ms;
        guest
    }
}

/// Changes the cluster and plans for what comes out.
pub fn what_if(
    mut cluster: Cluster,
    changes: &Changes,
    settings: &Balance,
) -> Result<Forecast, WhatIfError> {
    add_hosts(&mut cluster, changes)?;
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
        let host = Host {
            capacity: size.unwrap_or(largest),
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
            groups: BTreeSet::new(),
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
}
