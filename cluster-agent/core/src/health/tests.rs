//! What two witnesses, the network and the datastore, make of a host.

use alloc::vec::Vec;

use super::*;

const MS: u64 = 1000;
const SECOND: u64 = 1000 * MS;

const WAITS: Waits = Waits {
    beat_us: 250 * MS,
    suspect_us: SECOND,
    isolated_us: 2 * SECOND,
    lapse_us: 3300 * MS,
    lead_lapse_us: 1500 * MS,
    stagger_us: 200 * MS,
};

/// A peer and the time as it is watched.
struct Watch {
    peer: Peer,
    now_us: u64,
    beats: u64,
    silent_us: u64,
    said: Vec<Change>,
}

impl Watch {
    fn begin() -> Self {
        let mut watch = Self {
            peer: Peer::new(0),
            now_us: 0,
            beats: 1,
            silent_us: 0,
            said: Vec::new(),
        };
        watch.goes_on(SECOND, true, true);
        assert_eq!(watch.peer.state(), HostState::Alive);
        watch
    }

    /// Is the host heard, does its record move?
    fn goes_on(&mut self, for_us: u64, heard: bool, beats: bool) -> HostState {
        let until_us = self.now_us + for_us;
        while self.now_us < until_us {
            self.now_us += WAITS.beat_us;
            if heard {
                self.peer.heard(self.now_us);
            }
            if beats {
                (self.beats, self.silent_us) = (self.beats + 1, 0);
            } else {
                self.silent_us += WAITS.beat_us;
            }
            let record = HeartbeatRecord {
                host: "b".into(),
                incarnation: Incarnation([1; 16]),
                counter: self.beats,
                sent_us: 0,
                term: 1,
                flags: 0,
                writer_pid: 1,
            };
            self.peer.sighted(self.now_us, Some(record), self.silent_us);
            let change = self.peer.judge(self.now_us, Wanted::Service, &WAITS);
            self.said.extend(change);
        }
        self.peer.state()
    }
}

#[test]
fn silence_on_the_network_alone_is_isolation() {
    let mut watch = Watch::begin();
    assert_eq!(watch.goes_on(SECOND / 2, false, true), HostState::Alive);
    assert_eq!(watch.goes_on(SECOND, false, true), HostState::Suspect);
    assert_eq!(watch.goes_on(SECOND, false, true), HostState::Isolated);
    assert_eq!(watch.goes_on(60 * SECOND, false, true), HostState::Isolated);
    assert_eq!(watch.goes_on(SECOND, true, true), HostState::Alive);
}

#[test]
fn silence_of_both_is_death_and_not_before_leases_have_lapsed() {
    let mut watch = Watch::begin();
    assert_eq!(watch.goes_on(3 * SECOND, false, false), HostState::Suspect);
    assert_eq!(watch.goes_on(SECOND, false, false), HostState::Dead);
    assert_eq!(watch.goes_on(SECOND, true, true), HostState::Alive);
}

#[test]
fn silence_on_the_datastore_alone_is_lost_storage() {
    let mut watch = Watch::begin();
    assert_eq!(watch.goes_on(3 * SECOND, true, false), HostState::Suspect);
    assert_eq!(watch.goes_on(SECOND, true, false), HostState::StorageLost);
}

#[test]
fn a_host_that_flaps_is_given_no_guests_for_longer_and_longer() {
    let mut watch = Watch::begin();
    let mut held_s = Vec::new();
    for _ in 0..8 {
        watch.goes_on(4 * SECOND, false, true);
        assert_eq!(watch.peer.state(), HostState::Isolated);
        watch.goes_on(SECOND, true, true);
        assert_eq!(watch.peer.state(), HostState::Alive);
        // Counted from the failure.
        let mut waited_us = 0;
        while !watch.peer.trusted(watch.now_us) {
            watch.goes_on(SECOND, true, true);
            waited_us += SECOND;
        }
        held_s.push(waited_us / SECOND);
    }
    assert_eq!(held_s[0], 0, "once is no flapping");
    assert!(held_s.is_sorted() && held_s[1] > 0, "{held_s:?}");
    assert!(held_s[7] <= 60, "{held_s:?}");
    let reason = |change: &Change| change.because.contains("failure 2 in a short time");
    assert!(watch.said.iter().any(reason), "it is not said");
    watch.goes_on(FORGIVEN_AFTER_US + SECOND, true, true);
    watch.goes_on(4 * SECOND, false, true);
    watch.goes_on(SECOND, true, true);
    assert!(watch.peer.trusted(watch.now_us), "it is never forgiven");
}
