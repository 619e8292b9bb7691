//! What the operator wants of the cluster as a whole: settings, rules, groups of hosts.

use std::collections::{BTreeMap, BTreeSet};

use cluster_core::model::{GroupId, HostId, Rule};
use cluster_core::settings::Settings;
use serde::{Deserialize, Serialize};
use shared_storage::document::Revised;
use shared_storage::{Datastore, StoreError};

use crate::revise::revise;

/// `policy.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policy {
    /// Settings, where they differ from the defaults.
    pub settings: Settings,
    /// Groups of hosts, for rules.
    pub groups: BTreeMap<GroupId, BTreeSet<HostId>>,
    /// Rules by name.
    pub rules: BTreeMap<String, Rule>,
    /// Hosts that shall be empty.
    pub maintenance: BTreeSet<HostId>,
    /// Hosts that shall leave the cluster once they are empty.
    pub leaving: BTreeSet<HostId>,
}

impl Policy {
    /// Read it. Before the first change `[policy]` of cluster.toml has the settings.
    pub fn read(store: &Datastore) -> Result<Revised<Self>, StoreError> {
        match store.policy() {
            Err(StoreError::Missing(_)) => {}
            other => return other,
        }
        let settings = store.cluster().policy.clone().try_into();
        let settings = settings.map_err(|error: toml::de::Error| StoreError::Invalid {
            path: store.root().join("cluster.toml"),
            why: format!("its [policy] is not understood: {error}"),
        })?;
        Ok(Revised {
            revision: 0,
            spec: Self {
                settings,
                ..Self::default()
            },
        })
    }

    /// Change it. `change` may see it more than once, each time as it is then.
    pub fn change<R, E: From<StoreError>>(
        store: &Datastore,
        change: impl Fn(&mut Self) -> Result<R, E>,
    ) -> Result<R, E> {
        let write = |revision, policy: &Self| store.update_policy(revision, policy);
        revise(|| Self::read(store), write, change)
    }
}

#[cfg(test)]
mod tests {
    use cluster_core::drs::Automation;
    use std::sync::Arc;

    use shared_storage::ClusterFile;
    use shared_storage::state::Memory;
    use storage_core::timing::Timing;

    use super::*;

    #[test]
    fn cluster_toml_holds_until_something_is_set() {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = ClusterFile::new("test", Timing::default());
        cluster.policy = toml::from_str("starts-per-host = 3").unwrap();
        let store = Datastore::create(dir.path(), &cluster).unwrap();
        let store = store.with_state(Arc::new(Memory::default()));
        assert_eq!(
            Policy::read(&store).unwrap().spec.settings.starts_per_host,
            3
        );
        let set = |policy: &mut Policy| {
            policy.settings.drs.automation = Automation::Full;
            Ok::<_, StoreError>(())
        };
        Policy::change(&store, set).unwrap();
        Policy::change(&store, set).unwrap();
        let read = Policy::read(&store).unwrap();
        assert_eq!(
            read.revision, 1,
            "setting what is set already changes nothing"
        );
        assert_eq!(read.spec.settings.starts_per_host, 3);
        assert_eq!(read.spec.settings.drs.automation, Automation::Full);
    }
}
