//! What the datastore says about the cluster, read for the brain.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use cluster_core::model::{GuestId, HostId, Resources};
use cluster_core::settings::{HostEntry, Inventory};
use serde::{Deserialize, Serialize};
use shared_storage::{Datastore, StoreError};
use tracing::warn;
use vmm_core::compat::CpuFeatures;

use crate::baseline;
use crate::guest_file::GuestFile;
use crate::policy::Policy;
use crate::tokens::Tokens;

/// What a host says about itself in its `host.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFile {
    /// Where its agent answers.
    pub address: SocketAddr,
    /// What guests may use of it.
    pub capacity: Resources,
    /// What its VMM can show a guest, if it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_features: Option<CpuFeatures>,
    /// Version of its agent.
    pub version: String,
}

/// Everything that was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// For the brain.
    pub inventory: Inventory,
    /// What hosts say about themselves.
    pub hosts: BTreeMap<HostId, HostFile>,
    /// What all hosts' processors can do.
    pub common_features: Option<CpuFeatures>,
    /// Hosts whose processors lack what others have, and what that is.
    pub cpu_lacks: BTreeMap<HostId, Vec<String>>,
    /// What guests are made of.
    pub guests: BTreeMap<GuestId, GuestFile>,
    /// What operators from afar show.
    pub tokens: Arc<Tokens>,
}

/// Read it all. A damaged file of one host or guest costs only that one. `fencing`: whether
/// the datastore fences disks at a takeover.
pub fn read(store: &Datastore, fencing: bool) -> Result<Reading, StoreError> {
    let mut reading = Reading::default();
    for (name, host) in hosts(store)? {
        let entry = HostEntry {
            capacity: host.capacity,
            ..HostEntry::default()
        };
        reading.inventory.hosts.insert(name.clone(), entry);
        reading.hosts.insert(name, host);
    }
    reading.common_features = baseline::common(reading.hosts.values());
    reading.cpu_lacks = baseline::lacking(&reading.hosts);
    for name in store.guests()? {
        match store.guest(&name).and_then(|dir| dir.spec::<GuestFile>()) {
            Ok(guest) => {
                let mut model = guest.spec.model();
                model.revision = guest.revision;
                reading.inventory.guests.insert(name.clone(), model);
                reading.guests.insert(name, guest.spec);
            }
            Err(error) => warn!(guest = name, %error, "passed over"),
        }
    }
    match Policy::read(store) {
        Ok(policy) => take_policy(&mut reading.inventory, policy.spec),
        Err(error) => warn!(%error, "the defaults hold"),
    }
    match Tokens::read(store) {
        Ok(tokens) => reading.tokens = Arc::new(tokens.spec),
        Err(error) => warn!(%error, "no token is taken"),
    }
    reading.inventory.lease = *store.timing();
    reading.inventory.fencing = fencing;
    Ok(reading)
}

/// Read what hosts say about themselves. A damaged file costs only its own.
pub fn hosts(store: &Datastore) -> Result<BTreeMap<HostId, HostFile>, StoreError> {
    let mut hosts = BTreeMap::new();
    for name in store.hosts()? {
        match store.read_host::<HostFile>(&name) {
            Ok(host) => {
                hosts.insert(name, host);
            }
            Err(error) => warn!(host = name, %error, "passed over"),
        }
    }
    Ok(hosts)
}

fn take_policy(inventory: &mut Inventory, policy: Policy) {
    inventory.settings = policy.settings;
    inventory.rules = policy.rules;
    for name in policy.maintenance {
        if let Some(host) = inventory.hosts.get_mut(&name) {
            host.maintenance = true;
        }
    }
    for name in policy.leaving {
        if let Some(host) = inventory.hosts.get_mut(&name) {
            host.leaving = true;
        }
    }
    for (group, hosts) in policy.groups {
        for name in hosts {
            if let Some(host) = inventory.hosts.get_mut(&name) {
                host.groups.insert(group.clone());
            }
        }
    }
}
