//! What hosts will hold once the orders given are carried out.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::{Failover, Situation};
use crate::messages::GuestState;
use crate::model::{Cluster, GuestId, HostId};
use crate::placement::{Usage, usage};
use crate::rules::RuleBook;
use crate::settings::Settings;

/// The cluster as it will be once the orders given are carried out.
pub(super) struct Plan<'a> {
    pub(super) cluster: Cluster,
    pub(super) book: RuleBook<'a>,
    pub(super) usage: Usage,
    starting: BTreeMap<HostId, u32>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(failover: &Failover, at: &Situation<'a>) -> Self {
        let mut plan = Self {
            cluster: at.cluster.clone(),
            book: RuleBook::new(&at.cluster.rules),
            usage: usage(at.cluster),
            starting: BTreeMap::new(),
        };
        for (guest, spec) in &at.cluster.guests {
            let Some(owned) = at.owners.get(guest) else {
                continue;
            };
            let starting = owned
                .report
                .as_ref()
                .is_some_and(|r| r.state == GuestState::Starting);
            if let (Some(host), true) = (&spec.host, starting) {
                *plan.starting.entry(host.clone()).or_default() += 1;
            }
            if let Some(used) = owned
                .arriving
                .as_ref()
                .and_then(|host| plan.usage.get_mut(host))
            {
                used.reserved = used.reserved.plus(spec.reservation);
                used.wanted = used.wanted.plus(spec.demand);
            }
        }
        for (guest, host) in failover.under_way() {
            plan.take(guest, host);
        }
        plan
    }

    pub(super) fn take(&mut self, guest: &GuestId, host: &HostId) {
        *self.starting.entry(host.clone()).or_default() += 1;
        let Some(spec) = self.cluster.guests.get_mut(guest) else {
            return;
        };
        if spec.host.replace(host.clone()).is_none()
            && let Some(used) = self.usage.get_mut(host)
        {
            used.reserved = used.reserved.plus(spec.reservation);
            used.wanted = used.wanted.plus(spec.demand);
        }
    }

    /// Hosts that are starting as many guests as they may.
    pub(super) fn full(&self, settings: &Settings) -> impl Iterator<Item = HostId> {
        let most = settings.starts_per_host.max(1);
        self.starting
            .iter()
            .filter(move |(_, starting)| **starting >= most)
            .map(|(host, _)| host.clone())
            .collect::<Vec<_>>()
            .into_iter()
    }
}
