//! Is a peer alive? Judged by two witnesses: its messages over the network and its
//! heartbeat on the datastore.
//!
//! ```text
//!                     network beats          network silent
//!  datastore beats    Alive                  Suspect, then Isolated after `isolated_after`
//!  datastore stands   Suspect at first,      Suspect, then Dead after W
//!                     StorageLost after W
//! ```
//!
//! `W` counts on our own clock, and only time between two successful storage accesses of
//! ours while our own heartbeat stood: when storage is lost for all, nobody is dead.
//! `Maintenance` and `Leaving` are what the operator wants of a host that is `Alive`; they
//! hide nothing else.

use alloc::format;
use alloc::string::String;

use storage_core::record::HeartbeatRecord;

use crate::messages::{HostNote, Incarnation};
use crate::settings::Waits;

/// Longest hold-down of a host that flaps.
const MAX_HOLD_US: u64 = 60_000_000;
/// Hold-down after the second return.
const FIRST_HOLD_US: u64 = 5_000_000;
/// A host that stayed alive for so long has its flaps forgiven.
const FORGIVEN_AFTER_US: u64 = 600_000_000;
/// A datastore heartbeat that was not seen to move for so many beats does not count as a
/// sign of life any more.
const FRESH_BEATS: u64 = 5;

/// What a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostState {
    /// Heard, and beats on the datastore.
    Alive,
    /// Something is missing, but not for long enough to say what.
    Suspect,
    /// Not heard, but beats on the datastore: its guests run.
    Isolated,
    /// Heard, but its datastore heartbeat stood still for `W`: its guests stand still.
    StorageLost,
    /// Neither heard nor beating for `W`.
    Dead,
    /// Alive, and about to leave the cluster.
    Leaving,
    /// Alive, and wanted empty.
    Maintenance,
}

impl HostState {
    /// Have the leases of that host lapsed?
    pub fn lapsed(self) -> bool {
        matches!(self, Self::Dead | Self::StorageLost)
    }

    /// In a word, for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Isolated => "isolated",
            Self::StorageLost => "without storage",
            Self::Dead => "dead",
            Self::Leaving => "leaving",
            Self::Maintenance => "in maintenance",
        }
    }
}

/// What is wanted of the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wanted {
    /// Service.
    #[default]
    Service,
    /// To be empty.
    Maintenance,
    /// To go.
    Leaving,
}

/// A change of state, with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Before.
    pub was: HostState,
    /// Now.
    pub is: HostState,
    /// Why, in words and numbers.
    pub because: String,
}

/// What is known about one peer.
#[derive(Debug, Clone)]
pub struct Peer {
    state: HostState,
    since_us: u64,
    heard_us: u64,
    ever_heard: bool,
    expected: bool,
    record: Option<HeartbeatRecord>,
    moved_us: Option<u64>,
    silent_us: u64,
    flaps: u32,
    hold_until_us: u64,
}

impl Peer {
    /// A peer nothing is known about yet: it is given the benefit of the doubt.
    pub fn new(now_us: u64) -> Self {
        Self {
            state: HostState::Suspect,
            since_us: now_us,
            heard_us: now_us,
            ever_heard: false,
            expected: true,
            record: None,
            moved_us: None,
            silent_us: 0,
            flaps: 0,
            hold_until_us: 0,
        }
    }

    /// A message arrived.
    pub fn heard(&mut self, now_us: u64) {
        self.heard_us = self.heard_us.max(now_us);
        self.ever_heard = true;
    }

    /// Does it beat to this host at all? Who does not is judged by the datastore alone.
    pub fn expect(&mut self, now_us: u64, expected: bool) {
        if expected && !self.expected {
            self.heard_us = self.heard_us.max(now_us);
        }
        self.expected = expected;
    }

    /// What the datastore's watcher knows of its heartbeat.
    pub fn sighted(&mut self, now_us: u64, record: Option<HeartbeatRecord>, silent_us: u64) {
        let key = |record: &HeartbeatRecord| (record.incarnation, record.counter);
        if let Some(record) = record {
            let before = self.record.as_ref().map(key);
            // The first record read may be years old; only a second one is a sign of life.
            if before.is_some_and(|before| before != key(&record)) {
                self.moved_us = Some(now_us);
            }
            self.record = Some(record);
        }
        self.silent_us = silent_us;
    }

    /// Its state.
    pub fn state(&self) -> HostState {
        self.state
    }

    /// Since when it has been in that state.
    pub fn since_us(&self) -> u64 {
        self.since_us
    }

    /// Its incarnation, if its record was ever read.
    pub fn incarnation(&self) -> Option<Incarnation> {
        Some(self.record.as_ref()?.incarnation)
    }

    /// What it last said on the datastore.
    pub fn note(&self) -> HostNote {
        self.record
            .as_ref()
            .map(|record| HostNote::from_flags(record.flags))
            .unwrap_or_default()
    }

    /// Is it heard right now?
    pub fn is_heard(&self, now_us: u64, t: &Waits) -> bool {
        self.ever_heard && self.unheard_us(now_us) < t.suspect_us
    }

    /// Network silence too long for chance.
    pub fn is_cut_off(&self, now_us: u64, t: &Waits) -> bool {
        self.unheard_us(now_us) >= t.isolated_us
    }

    /// Its datastore heartbeat was seen to move lately.
    pub fn beats(&self, now_us: u64, t: &Waits) -> bool {
        self.moved_us
            .is_some_and(|moved_us| now_us.saturating_sub(moved_us) < FRESH_BEATS * t.beat_us)
    }

    /// Its datastore heartbeat has stood still for long enough that its leases have lapsed.
    pub fn stands(&self, t: &Waits) -> bool {
        self.silent_us >= t.lapse_us
    }

    /// As [`Self::stands`], for the lead.
    pub fn lead_lapsed(&self, t: &Waits) -> bool {
        self.silent_us >= t.lead_lapse_us
    }

    /// Nothing was heard or seen of it yet that tells whether it lives.
    pub fn unknown(&self, t: &Waits) -> bool {
        !self.ever_heard && !self.stands(t)
    }

    /// For how long its datastore heartbeat has stood still, in milliseconds that count.
    pub fn silent_ms(&self) -> u64 {
        self.silent_us / 1000
    }

    /// May it be given guests: alive, and not held down for flapping?
    pub fn trusted(&self, now_us: u64) -> bool {
        self.state == HostState::Alive && now_us >= self.hold_until_us
    }

    /// How long it is held down yet for flapping.
    pub fn held_us(&self, now_us: u64) -> u64 {
        self.hold_until_us.saturating_sub(now_us)
    }

    fn unheard_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.heard_us)
    }

    /// Judges the peer anew.
    pub fn judge(&mut self, now_us: u64, wanted: Wanted, t: &Waits) -> Option<Change> {
        let unheard_us = self.unheard_us(now_us);
        let beats = self.beats(now_us, t);
        let heard = self.is_heard(now_us, t) || !self.expected && beats;
        let is = match (heard, self.stands(t)) {
            (true, false) if !beats => HostState::Suspect,
            (true, false) => match wanted {
                Wanted::Service => HostState::Alive,
                Wanted::Maintenance => HostState::Maintenance,
                Wanted::Leaving => HostState::Leaving,
            },
            (true, true) => HostState::StorageLost,
            (false, true) => HostState::Dead,
            (false, false) if self.is_cut_off(now_us, t) && self.beats_after_silence(t) => {
                HostState::Isolated
            }
            // Once isolated it stays so until a witness changes its mind.
            (false, false) if self.state == HostState::Isolated && beats => HostState::Isolated,
            (false, false) => HostState::Suspect,
        };
        if is == self.state {
            if is == HostState::Alive && now_us - self.since_us > FORGIVEN_AFTER_US {
                self.flaps = 0;
            }
            return None;
        }
        let was = self.state;
        (self.state, self.since_us) = (is, now_us);
        let mut because = format!(
            "{} for {} ms, datastore heartbeat {} ({} ms unchanged)",
            if heard { "heard, last" } else { "not heard" },
            unheard_us / 1000,
            if beats { "moves" } else { "does not move" },
            self.silent_us / 1000
        );
        if matches!(is, HostState::Isolated) || was.lapsed() && !is.lapsed() {
            because = self.note_flap(now_us, because);
        }
        Some(Change { was, is, because })
    }

    /// The record moved after the network had fallen silent for longer than chance allows,
    /// which only a living host does.
    fn beats_after_silence(&self, t: &Waits) -> bool {
        self.moved_us
            .is_some_and(|moved_us| moved_us > self.heard_us + t.suspect_us)
    }

    fn note_flap(&mut self, now_us: u64, because: String) -> String {
        self.flaps += 1;
        if self.flaps < 2 {
            return because;
        }
        let hold = (FIRST_HOLD_US << (self.flaps - 2).min(6)).min(MAX_HOLD_US);
        self.hold_until_us = now_us + hold;
        format!(
            "{because}; failure {} in a short time, so it receives no guests for {} s",
            self.flaps,
            hold / 1_000_000
        )
    }
}

#[cfg(test)]
mod tests;
