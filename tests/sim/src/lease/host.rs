//! A fake host: its clock, the page its processes share, and those processes.

use std::collections::BTreeMap;

use storage_core::beat::Pace;
use storage_core::hold::Hold;
use storage_core::lease::{Identity, Lease};
use storage_core::observer::Observer;
use storage_core::record::{Holder, Incarnation, LeaseRecord};
use storage_core::timing::Timing;

use crate::rng::Rng;

const MILLION: u64 = 1_000_000;

/// A boottime clock: the true time of an own second lies within a million plus or minus
/// `drift` microseconds.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// At this true time, in microseconds, ...
    at: u64,
    /// ... it shows this, in microseconds.
    shows: u64,
    /// True microseconds in an own second.
    second_us: u64,
}

impl Clock {
    /// A clock that shows `own_us` at `true_us`.
    pub fn new(true_us: u64, own_us: u64, second_us: u64) -> Self {
        Self {
            at: true_us,
            shows: own_us,
            second_us,
        }
    }

    /// What it shows.
    pub fn own_us(&self, true_us: u64) -> u64 {
        self.shows + (true_us.saturating_sub(self.at)) * MILLION / self.second_us
    }

    /// When it shows that, at the earliest now.
    pub fn true_us(&self, own_us: u64) -> u64 {
        let ahead_us = own_us.saturating_sub(self.shows).min(1 << 40);
        self.at + (ahead_us * self.second_us).div_ceil(MILLION)
    }

    /// The same clock, set so that it shows `own_us` at `true_us`.
    pub fn set(&mut self, true_us: u64, own_us: u64) {
        self.at = true_us;
        self.shows = own_us;
    }
}

/// Which process of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The agent.
    Agent,
    /// The guest's.
    Guest,
}

/// What the shared page holds.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    pub hold: Hold,
    pub pace: Pace,
    pub counter: u64,
}

/// What all processes have.
#[derive(Debug)]
pub struct Process {
    /// Distinguishes it from its predecessors: answers to them are lost with them.
    pub id: u64,
    pub frozen_until_us: u64,
    pub beating: bool,
}

/// The agent: beats, watches, claims.
#[derive(Debug)]
pub struct Agent {
    pub process: Process,
    pub observers: BTreeMap<usize, Observer>,
    pub reading: bool,
    pub looking: bool,
    /// The last epoch as it was found, and when, on the own clock.
    pub seen: Option<(Option<LeaseRecord>, u64)>,
    pub claim: Option<Lease>,
}

/// Why a guest's process lets go of the lease.
#[derive(Debug, Clone)]
pub enum Leaving {
    /// The commit of a migration to this holder.
    To(Holder),
    /// The guest was shut down.
    Release,
}

/// A guest's process.
#[derive(Debug)]
pub struct Guest {
    pub process: Process,
    pub lease: Lease,
    /// The target of a migration that has not been committed yet.
    pub awaiting: bool,
    pub looking: bool,
    /// The disk it writes to, once it is open.
    pub inode: Option<u64>,
    pub in_flight: u32,
    /// What it will do as soon as its writes are complete.
    pub leaving: Option<Leaving>,
    /// When an awaiting target gives up, in true time.
    pub give_up_us: u64,
}

/// A host.
#[derive(Debug)]
pub struct Host {
    pub up: bool,
    /// It never boots again.
    pub gone: bool,
    pub boot: u64,
    pub clock: Clock,
    pub page: Page,
    /// Its way to the storage is cut until then.
    pub cut_until_us: u64,
    /// Everything on it stands still until then, its clock too.
    pub stopped_until_us: u64,
    /// The epoch under which a guest's process acts or, if it died, acted; as noted locally.
    pub acted: Option<u64>,
    pub agent: Option<Agent>,
    pub guest: Option<Guest>,
}

impl Host {
    /// A host that boots now.
    pub fn boot(at_us: u64, boot: u64, uptime_us: u64, drift_ppm: u64, rng: &mut Rng) -> Self {
        let second_us = rng.between(MILLION - drift_ppm, MILLION + drift_ppm);
        Self {
            up: true,
            gone: false,
            boot,
            clock: Clock::new(at_us, uptime_us, second_us),
            page: Page {
                hold: Hold::expired(rng.below(1000) as u32),
                pace: Pace::default(),
                counter: 0,
            },
            cut_until_us: 0,
            stopped_until_us: 0,
            acted: None,
            agent: None,
            guest: None,
        }
    }

    /// The process, if it is the one with this id.
    pub fn process(&mut self, who: Who, id: u64) -> Option<&mut Process> {
        let process = match who {
            Who::Agent => self.agent.as_mut().map(|agent| &mut agent.process),
            Who::Guest => self.guest.as_mut().map(|guest| &mut guest.process),
        };
        process.filter(|process| process.id == id)
    }
}

/// The boot's name on the datastore.
pub fn incarnation(host: usize, boot: u64) -> Incarnation {
    let mut bytes = [0; 16];
    bytes[0] = host as u8;
    bytes[8..].copy_from_slice(&boot.to_le_bytes());
    Incarnation(bytes)
}

/// A host's name.
pub fn name(host: usize) -> String {
    format!("host-{host}")
}

/// The machine of a process.
pub fn lease(host: usize, boot: u64, id: u64, timing: Timing) -> Lease {
    let identity = Identity {
        cluster: [0; 16],
        subject: "guest".into(),
        host: name(host),
        incarnation: incarnation(host, boot),
        salt: id.to_le_bytes(),
    };
    Lease::new(identity, timing)
}
