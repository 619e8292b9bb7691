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

use crate::event::DatastoreBeat;
use crate::messages::{HostNote, Incarnation};
use crate::settings::Timings;

/// Longest hold-down of a host that flaps.
const MAX_HOLD_US: u64 = 300_000_000;
/// Hold-down after the second return.
const FIRST_HOLD_US: u64 = 5_000_000;
/// A host that stayed alive for so long has its flaps forgiven.
const FORGIVEN_AFTER_US: u64 = 600_000_000;
/// Gap between two reads of a record, in beats, beyond which time does not count: we
/// slept, or storage did.
const MAX_GAP_BEATS: u64 = 4;

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
    beat: Option<DatastoreBeat>,
    changed_us: u64,
    read_us: Option<u64>,
    still_us: u64,
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
            beat: None,
            changed_us: now_us,
            read_us: None,
            still_us: 0,
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

    /// Its heartbeat record was read; `counts`: our own heartbeat stands.
    pub fn beat_read(
        &mut self,
        now_us: u64,
        beat: Option<DatastoreBeat>,
        counts: bool,
        t: &Timings,
    ) {
        let moved = match (&self.beat, &beat) {
            (Some(old), Some(new)) => {
                (old.incarnation, old.counter) != (new.incarnation, new.counter)
            }
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if moved {
            self.changed_us = now_us;
            self.still_us = 0;
            self.beat = beat;
        } else if let (Some(read_us), true) = (self.read_us, counts) {
            let gap = now_us.saturating_sub(read_us);
            self.still_us += gap.min(MAX_GAP_BEATS * t.beat_every_ms * 1000);
        }
        self.read_us = Some(now_us);
    }

    /// One of our own storage accesses failed: the time since the last read is not counted.
    pub fn storage_failed(&mut self) {
        self.read_us = None;
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
        self.beat.map(|beat| beat.incarnation)
    }

    /// What it last said on the datastore.
    pub fn note(&self) -> HostNote {
        self.beat.map(|beat| beat.note).unwrap_or_default()
    }

    /// Is it heard right now?
    pub fn is_heard(&self, now_us: u64, t: &Timings) -> bool {
        self.ever_heard && self.silent_us(now_us) < t.suspect_after_ms * 1000
    }

    /// Network silence too long for chance.
    pub fn is_cut_off(&self, now_us: u64, t: &Timings) -> bool {
        self.silent_us(now_us) >= t.isolated_after_ms * 1000
    }

    /// Its datastore heartbeat moved lately.
    pub fn beats(&self, t: &Timings) -> bool {
        self.beat.is_some() && self.still_us < t.lapse_after_ms * 500
    }

    /// Its datastore heartbeat has stood still for `W`.
    pub fn stands(&self, t: &Timings) -> bool {
        self.still_us >= t.lapse_after_ms * 1000
    }

    /// For how long its datastore heartbeat has stood still, in milliseconds that count.
    pub fn still_ms(&self) -> u64 {
        self.still_us / 1000
    }

    /// May it be given guests: alive, and not held down for flapping?
    pub fn trusted(&self, now_us: u64) -> bool {
        self.state == HostState::Alive && now_us >= self.hold_until_us
    }

    /// How long it is held down yet for flapping.
    pub fn held_us(&self, now_us: u64) -> u64 {
        self.hold_until_us.saturating_sub(now_us)
    }

    fn silent_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.heard_us)
    }

    /// Judges the peer anew.
    pub fn judge(&mut self, now_us: u64, wanted: Wanted, t: &Timings) -> Option<Change> {
        let (silent, still) = (self.silent_us(now_us), self.still_us);
        let heard = self.is_heard(now_us, t) || !self.expected && self.beats(t);
        let is = match (heard, self.stands(t)) {
            (true, false) if !self.beats(t) => HostState::Suspect,
            (true, false) => match wanted {
                Wanted::Service => HostState::Alive,
                Wanted::Maintenance => HostState::Maintenance,
                Wanted::Leaving => HostState::Leaving,
            },
            (true, true) => HostState::StorageLost,
            (false, true) => HostState::Dead,
            (false, false) if self.is_cut_off(now_us, t) && self.beats_after_silence() => {
                HostState::Isolated
            }
            // Once isolated it stays so until a witness changes its mind.
            (false, false) if self.state == HostState::Isolated && self.beats(t) => {
                HostState::Isolated
            }
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
            "{} for {} ms, datastore heartbeat {} for {} ms",
            if heard { "heard, last" } else { "not heard" },
            silent / 1000,
            if still == 0 { "moves" } else { "unchanged" },
            still / 1000
        );
        if matches!(is, HostState::Isolated) || was.lapsed() && !is.lapsed() {
            because = self.note_flap(now_us, because);
        }
        Some(Change { was, is, because })
    }

    /// The record moved after the network had fallen silent for longer than chance allows,
    /// which only a living host does.
    fn beats_after_silence(&self) -> bool {
        self.changed_us > self.heard_us + 1_000_000
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
