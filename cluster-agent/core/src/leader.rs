//! Who should contend for the leader lease, and when to let go of it.
//!
//! The lease decides who leads; this only keeps all from rushing at once and lets the
//! best-connected host go first. A vacant lead is contended for by the first host in rank
//! at once and by each further one `contend_stagger` later, so that a dead candidate costs
//! one stagger, not an election.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;

use crate::health::{HostState, Peer};
use crate::messages::{HostNote, Incarnation, LeaseSeen};
use crate::model::HostId;
use crate::settings::Waits;

/// Pause between two attempts of one host.
const RETRY_US: u64 = 500_000;
/// How long a better-connected host has to be seen before the leader steps down for it.
const STEP_DOWN_HOLD_US: u64 = 3_000_000;

/// Why the lead is vacant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vacancy {
    /// There never was a leader, or it released the lease.
    Free,
    /// The holder was rebooted.
    Rebooted(HostId),
    /// The holder's datastore heartbeat stands still.
    Lapsed(HostId),
}

impl Vacancy {
    /// In words.
    pub fn words(&self) -> String {
        match self {
            Self::Free => "nobody holds the lead".into(),
            Self::Rebooted(host) => format!("leader {host} was rebooted"),
            Self::Lapsed(host) => format!("the heartbeat of leader {host} stands still"),
        }
    }
}

/// Is the lease still its holder's, as far as this host can see? `None`: it is.
pub fn vacancy(
    seen: &LeaseSeen,
    me: (&HostId, Incarnation),
    term: u32,
    peers: &BTreeMap<HostId, Peer>,
    t: &Waits,
) -> Option<Vacancy> {
    let Some(holder) = &seen.holder else {
        return Some(Vacancy::Free);
    };
    if holder.host == *me.0 {
        if holder.incarnation != me.1 {
            return Some(Vacancy::Rebooted(holder.host.clone()));
        }
        // Our own hold lapsed since: the lead has to be claimed anew.
        return (holder.term != term).then(|| Vacancy::Lapsed(holder.host.clone()));
    }
    let Some(peer) = peers.get(&holder.host) else {
        // Forgotten by the operator: it is no member any more.
        return Some(Vacancy::Lapsed(holder.host.clone()));
    };
    match peer.incarnation() {
        Some(incarnation) if incarnation != holder.incarnation => {
            Some(Vacancy::Rebooted(holder.host.clone()))
        }
        _ if peer.lead_lapsed(t) => Some(Vacancy::Lapsed(holder.host.clone())),
        _ => None,
    }
}

/// Keeps the time of contending and stepping down.
#[allow(clippy::struct_field_names)] // The unit is in the name.
#[derive(Debug, Clone, Default)]
pub struct Contest {
    vacant_since_us: Option<u64>,
    tried_us: Option<u64>,
    worse_since_us: Option<u64>,
}

impl Contest {
    /// Should this host contend now? Returns why.
    pub fn contend(
        &mut self,
        now_us: u64,
        vacancy: Option<&Vacancy>,
        me: (&HostId, HostNote, bool),
        peers: &BTreeMap<HostId, Peer>,
        t: &Waits,
    ) -> Option<String> {
        let Some(vacancy) = vacancy else {
            *self = Self {
                worse_since_us: self.worse_since_us,
                ..Self::default()
            };
            return None;
        };
        let since = *self.vacant_since_us.get_or_insert(now_us);
        let rank = rank(now_us, me, peers, t);
        let due = since + rank * t.stagger_us;
        let retry = self.tried_us.map_or(0, |tried| tried + RETRY_US);
        if now_us < due.max(retry) {
            return None;
        }
        self.tried_us = Some(now_us);
        Some(format!(
            "{}; this host is number {} of those that could lead",
            vacancy.words(),
            rank + 1
        ))
    }

    /// Should this host, the leader, let go? Returns why.
    pub fn step_down(
        &mut self,
        now_us: u64,
        (me, mine, resting): (&HostId, HostNote, bool),
        peers: &BTreeMap<HostId, Peer>,
        t: &Waits,
    ) -> Option<String> {
        if resting {
            return heir(now_us, peers, t)
                .map(|heir| format!("{me} is being emptied, and {heir} can lead"));
        }
        let better = peers.iter().find(|(_, peer)| {
            peer.beats(now_us, t) && peer.note().of > 0 && peer.note().well_connected()
        });
        let (false, Some((name, peer))) = (mine.well_connected(), better) else {
            self.worse_since_us = None;
            return None;
        };
        let since = *self.worse_since_us.get_or_insert(now_us);
        (now_us - since >= STEP_DOWN_HOLD_US).then(|| {
            format!(
                "this host hears {} of {} peers, {name} hears {} of {}",
                mine.hears,
                mine.of,
                peer.note().hears,
                peer.note().of
            )
        })
    }
}

/// A host in service that could lead in the place of one that is being emptied.
fn heir<'a>(now_us: u64, peers: &'a BTreeMap<HostId, Peer>, t: &Waits) -> Option<&'a HostId> {
    let fit =
        |peer: &Peer| peer.trusted(now_us) && peer.beats(now_us, t) && peer.note().well_connected();
    Some(peers.iter().find(|(_, peer)| fit(peer))?.0)
}

/// How many hosts should contend before this one.
fn rank(
    now_us: u64,
    me: (&HostId, HostNote, bool),
    peers: &BTreeMap<HostId, Peer>,
    t: &Waits,
) -> u64 {
    // False sorts first: connected before cut off, in service before maintenance.
    let mine = (!me.1.well_connected(), me.2, me.0);
    peers
        .iter()
        .filter(|(_, peer)| peer.beats(now_us, t) && !peer.state().lapsed())
        .map(|(name, peer)| {
            let resting = matches!(peer.state(), HostState::Maintenance | HostState::Leaving);
            (!peer.note().well_connected(), resting, name)
        })
        .filter(|theirs| *theirs < mine)
        .count() as u64
}
