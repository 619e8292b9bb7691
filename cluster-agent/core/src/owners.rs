//! Who runs what, as the leader knows it: from leases read and from the members' reports.
//!
//! Nothing here is authority; the lease on the datastore is. A stale entry leads to an
//! order whose takeover fails, and the answer corrects the entry.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::health::Peer;
use crate::messages::{GuestState, Holder, Incarnation, LeaseSeen, LocalGuest};
use crate::model::{GuestId, HostId};
use crate::settings::Waits;

/// A holder that has reported for so long without a guest of its does not run it.
const ABANDONED_US: u64 = 5_000_000;

/// What is known about one guest.
#[derive(Debug, Clone, Default)]
pub struct Owned {
    /// Its lease, once it was read or reported.
    pub lease: Option<LeaseSeen>,
    /// What its holder last reported.
    pub report: Option<LocalGuest>,
    /// A host to which it is just migrating.
    pub arriving: Option<HostId>,
    /// When its lease was last asked for.
    pub asked_us: Option<u64>,
    /// Since when its holder reports all it has, and this guest is not among it.
    absent_since_us: Option<u64>,
}

/// How a guest came to have no living holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// It never ran, or its lease was released.
    Free,
    /// Its holder was rebooted.
    Rebooted(HostId),
    /// Its holder's lease lapsed, for this reason.
    Lapsed(HostId, String),
}

/// Where a guest is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whereabouts {
    /// Not known yet: its lease has to be read.
    Unknown,
    /// Held by a host.
    Held(HostId),
    /// Held by none; the lease epoch to take over from.
    Lost(u64, Loss),
}

/// All guests' owners.
#[derive(Debug, Clone, Default)]
pub struct Owners {
    known: BTreeMap<GuestId, Owned>,
}

impl Owners {
    /// What is known about a guest.
    pub fn get(&self, guest: &str) -> Option<&Owned> {
        self.known.get(guest)
    }

    /// A lease was read; older news than what is known is ignored.
    pub fn lease_read(&mut self, guest: &GuestId, seen: LeaseSeen) {
        let owned = self.known.entry(guest.clone()).or_default();
        if owned
            .lease
            .as_ref()
            .is_none_or(|known| seen.epoch >= known.epoch)
        {
            let same = |known: &LeaseSeen| {
                known.epoch == seen.epoch && known.holder.is_some() == seen.holder.is_some()
            };
            if !owned.lease.as_ref().is_some_and(same) {
                owned.report = None;
                owned.absent_since_us = None;
            }
            owned.lease = Some(seen);
        }
    }

    /// A member reported all its guests. Returns those that have to be read because the
    /// report contradicts what was known, and whether anything changed.
    pub fn reported(
        &mut self,
        now_us: u64,
        host: &HostId,
        incarnation: Incarnation,
        report: BTreeMap<GuestId, LocalGuest>,
    ) -> (BTreeSet<GuestId>, bool) {
        let mut changed = false;
        let mut doubtful = BTreeSet::new();
        for (guest, owned) in &mut self.known {
            if report.contains_key(guest) {
                continue;
            }
            if owned.arriving.as_ref() == Some(host) {
                owned.arriving = None;
            }
            let was_here =
                |holder: &Holder| holder.host == *host && holder.incarnation == incarnation;
            if owned.holder().is_some_and(was_here) {
                owned.absent_since_us.get_or_insert(now_us);
                doubtful.insert(guest.clone());
            }
        }
        for (guest, local) in report {
            let owned = self.known.entry(guest).or_default();
            if local.state == GuestState::Arriving {
                changed |= owned.arriving.as_ref() != Some(host);
                owned.arriving = Some(host.clone());
                continue;
            }
            if local.epoch == 0
                || owned
                    .lease
                    .as_ref()
                    .is_some_and(|known| known.epoch > local.epoch)
            {
                continue;
            }
            let holder = Some(Holder {
                host: host.clone(),
                incarnation,
                // Not reported, and nothing here asks for it.
                term: 0,
            });
            changed |= owned
                .lease
                .as_ref()
                .is_none_or(|known| known.epoch != local.epoch);
            owned.lease = Some(LeaseSeen {
                epoch: local.epoch,
                holder,
            });
            changed |= owned
                .report
                .as_ref()
                .is_none_or(|before| before.state != local.state);
            owned.report = Some(local);
            owned.asked_us = None;
            owned.absent_since_us = None;
            if owned.arriving.as_ref() == Some(host) {
                owned.arriving = None;
            }
        }
        changed |= !doubtful.is_empty();
        (doubtful, changed)
    }

    /// Guests whose holder lives and has said for `ABANDONED_US` that it does not have them:
    /// its agent gave them up, or was not there when their VMM died. Each is named once in that
    /// time.
    pub fn abandoned(&mut self, now_us: u64) -> Vec<(GuestId, HostId)> {
        let mut abandoned = Vec::new();
        for (guest, owned) in &mut self.known {
            let holder = owned.lease.as_ref().and_then(|lease| lease.holder.as_ref());
            let since = owned.absent_since_us;
            if let (Some(holder), Some(since)) = (holder, since)
                && now_us >= since + ABANDONED_US
            {
                abandoned.push((guest.clone(), holder.host.clone()));
                owned.absent_since_us = Some(now_us);
            }
        }
        abandoned
    }

    /// Forgets guests that were deleted.
    pub fn retain(&mut self, keep: impl Fn(&GuestId) -> bool) {
        self.known.retain(|guest, _| keep(guest));
    }

    /// Where is this guest?
    pub fn whereabouts(
        &self,
        guest: &str,
        me: (&HostId, Incarnation),
        peers: &BTreeMap<HostId, Peer>,
        t: &Waits,
    ) -> Whereabouts {
        let Some(lease) = self.known.get(guest).and_then(|owned| owned.lease.as_ref()) else {
            return Whereabouts::Unknown;
        };
        let Some(holder) = &lease.holder else {
            return Whereabouts::Lost(lease.epoch, Loss::Free);
        };
        let loss = match (holder.host == *me.0, peers.get(&holder.host)) {
            (true, _) => (holder.incarnation != me.1).then(|| Loss::Rebooted(me.0.clone())),
            (false, None) => Some(Loss::Lapsed(
                holder.host.clone(),
                format!("{} is no member any more", holder.host),
            )),
            (false, Some(peer)) => loss_by(&holder.host, holder.incarnation, peer, t),
        };
        match loss {
            Some(loss) => Whereabouts::Lost(lease.epoch, loss),
            None => Whereabouts::Held(holder.host.clone()),
        }
    }

    /// Guests of `wanted` whose lease was not asked for lately and is not known, or names a host
    /// that is `cut_off` and cannot report that it let go; marks them as asked for.
    pub fn to_ask<'a>(
        &mut self,
        now_us: u64,
        again_us: u64,
        wanted: impl Iterator<Item = &'a GuestId>,
        cut_off: impl Fn(&HostId) -> bool,
    ) -> Vec<GuestId> {
        let mut ask = Vec::new();
        for guest in wanted {
            let owned = self.known.entry(guest.clone()).or_default();
            let due = owned
                .asked_us
                .is_none_or(|asked| now_us >= asked + again_us);
            let silent = owned.holder().is_some_and(|holder| cut_off(&holder.host));
            if due && (owned.lease.is_none() || silent) {
                owned.asked_us = Some(now_us);
                ask.push(guest.clone());
            }
        }
        ask
    }
}

impl Owned {
    /// The holder named in the lease.
    pub fn holder(&self) -> Option<&Holder> {
        self.lease.as_ref()?.holder.as_ref()
    }
}

fn loss_by(host: &HostId, incarnation: Incarnation, peer: &Peer, t: &Waits) -> Option<Loss> {
    if peer.incarnation().is_some_and(|now| now != incarnation) {
        return Some(Loss::Rebooted(host.clone()));
    }
    peer.stands(t).then(|| {
        let why = format!(
            "{host} is {}, its datastore heartbeat unchanged for {} ms",
            peer.state().word(),
            peer.silent_ms()
        );
        Loss::Lapsed(host.clone(), why)
    })
}
