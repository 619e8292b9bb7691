//! The inventory file, and what is refused of it. See docs/drs.md.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::WhatIfError;
use crate::model::{Cluster, GroupId, Guest, GuestId, Host, HostId, HostMode, Resources, Rule};
use crate::rules::contradictions;

/// Cores of a host, and of a guest, at most.
const CORES_MAX: u64 = 1 << 16;
/// Memory of a host, and of a guest, at most: a PiB.
const MEMORY_MIB_MAX: u64 = 1 << 30;
/// A migration takes a day at most.
const MIGRATION_MS_MAX: u64 = 24 * 3600 * 1000;

/// The version of the file that this program writes and reads.
pub const FILE_VERSION: u32 = 1;

/// An inventory file. See docs/drs.md.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct InventoryFile {
    /// [`FILE_VERSION`].
    pub version: u32,
    /// Hosts by name.
    #[serde(deserialize_with = "unique")]
    pub hosts: BTreeMap<HostId, FileHost>,
    /// Guests by name.
    #[serde(deserialize_with = "unique")]
    pub guests: BTreeMap<GuestId, FileGuest>,
    /// Rules by name.
    #[serde(default, deserialize_with = "unique")]
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
                    by: format!("guest {name}"),
                    host: host.clone(),
                });
            }
        }
        for (name, host) in &self.hosts {
            check_host(
                name,
                Resources::new(host.cores.saturating_mul(1000), host.memory_mib),
            )?;
        }
        for (name, guest) in &self.guests {
            guest.check(name)?;
        }
        for (name, rule) in &self.rules {
            self.check_rule(name, rule)?;
        }
        let cluster = Cluster {
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
        };
        match contradictions(&cluster).into_iter().next() {
            None => Ok(cluster),
            Some(one) => Err(WhatIfError::Contradiction {
                rules: one.rules.into_iter().collect::<Vec<_>>().join(", "),
                why: one.why,
            }),
        }
    }

    fn check_rule(&self, name: &str, rule: &Rule) -> Result<(), WhatIfError> {
        let unknown = rule
            .guests()
            .iter()
            .find(|guest| !self.guests.contains_key(*guest));
        if let Some(guest) = unknown {
            return Err(WhatIfError::NoGuest {
                rule: name.to_string(),
                guest: guest.clone(),
            });
        }
        if let Rule::GuestsToHosts { group, .. } = rule
            && !self.hosts.values().any(|host| host.groups.contains(group))
        {
            return Err(WhatIfError::NoGroup {
                rule: name.to_string(),
                group: group.clone(),
            });
        }
        Ok(())
    }
}

/// Refuses a host that cannot be.
pub(super) fn check_host(name: &str, capacity: Resources) -> Result<(), WhatIfError> {
    let of = || format!("host {name}");
    amount(of, "cores", capacity.mcpu / 1000, 1, CORES_MAX)?;
    amount(of, "memory-mib", capacity.memory_mib, 1, MEMORY_MIB_MAX)
}

fn amount(
    of: impl FnOnce() -> String,
    field: &'static str,
    value: u64,
    least: u64,
    most: u64,
) -> Result<(), WhatIfError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(WhatIfError::Amount {
        of: of(),
        field,
        value,
        least,
        most,
    })
}

/// A map in which no name is given twice: the first of two would be lost.
fn unique<'de, D, V>(from: D) -> Result<BTreeMap<String, V>, D::Error>
where
    D: Deserializer<'de>,
    V: Deserialize<'de>,
{
    struct Unique<V>(PhantomData<V>);

    impl<'de, V: Deserialize<'de>> Visitor<'de> for Unique<V> {
        type Value = BTreeMap<String, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map by name")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut all = BTreeMap::new();
            while let Some((name, value)) = map.next_entry::<String, V>()? {
                if all.contains_key(&name) {
                    let twice = format!("{name} is there twice, give each a name of its own");
                    return Err(A::Error::custom(twice));
                }
                all.insert(name, value);
            }
            Ok(all)
        }
    }

    from.deserialize_map(Unique(PhantomData))
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
    fn check(&self, name: &str) -> Result<(), WhatIfError> {
        let of = || format!("guest {name}");
        amount(of, "cpus", self.cpus, 1, CORES_MAX)?;
        amount(of, "memory-mib", self.memory_mib, 1, MEMORY_MIB_MAX)?;
        let mcpu_max = self.cpus * 1000;
        let demand = self.demand_mcpu.unwrap_or_default();
        amount(of, "demand-mcpu", demand, 0, mcpu_max)?;
        amount(of, "reserved-mcpu", self.reserved_mcpu, 0, mcpu_max)?;
        let active = self.active_mib.unwrap_or_default();
        amount(of, "active-mib", active, 0, self.memory_mib)?;
        let reserved = self.reserved_mib.unwrap_or_default();
        amount(of, "reserved-mib", reserved, 0, MEMORY_MIB_MAX)?;
        amount(of, "migration-ms", self.migration_ms, 0, MIGRATION_MS_MAX)
    }

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
