//! A host: its clock, its heartbeat, its agent and its guests' processes.

use std::collections::BTreeMap;

use cluster_core::brain::Brain;
use cluster_core::messages::{GuestState, LocalGuest};
use storage_core::hold::Hold;
use storage_core::lease::{Identity, Lease};
use storage_core::observer::Observer;
use storage_core::record::{Holder, Incarnation};
use storage_core::timing::Timing;

/// What the agent process holds in memory.
pub struct Agent {
    pub brain: Brain,
    pub observers: BTreeMap<usize, Observer>,
    pub lead: Option<Claim>,
}

/// A lease that a process of this host wants or has.
pub struct Claim {
    pub lease: Lease,
    /// The lease as read, and when the answer came, while its holder's end is awaited.
    pub seen: Option<(Option<storage_core::record::LeaseRecord>, u64)>,
    pub give_up_us: u64,
    pub from_epoch: u64,
    /// Claimed from somebody; not merely waiting to.
    pub begun: bool,
}

/// A guest's process.
pub struct Vm {
    pub claim: Claim,
    pub serial: u64,
    /// The machine is built.
    pub built: bool,
    /// Its processors run.
    pub runs: bool,
    pub since_us: u64,
    pub stopping: bool,
    /// Ordered by a leader who waits for an answer.
    pub ordered: bool,
    pub arriving: bool,
}

impl Vm {
    /// A process that has just been started.
    pub fn new(claim: Claim, serial: u64) -> Self {
        Self {
            claim,
            serial,
            built: false,
            runs: false,
            since_us: 0,
            stopping: false,
            ordered: false,
            arriving: false,
        }
    }

    pub fn local(&self, now_us: u64) -> LocalGuest {
        let epoch = self.claim.lease.record().map_or(0, |record| record.epoch);
        let running_ms = now_us.saturating_sub(self.since_us) / 1000;
        let state = match (self.built, self.runs) {
            _ if self.arriving => GuestState::Arriving,
            (false, _) => GuestState::Starting,
            (true, true) => GuestState::Running {
                beating: running_ms > 3000,
            },
            (true, false) => GuestState::Paused,
        };
        LocalGuest {
            epoch,
            state,
            running_ms,
        }
    }
}

pub struct Host {
    pub name: String,
    /// Counts boots; 0 while off for the first time.
    pub life: u64,
    pub up: bool,
    pub frozen_until_us: u64,
    pub drift_ppm: i64,
    pub hold: Hold,
    pub counter: u64,
    pub flags: u32,
    pub agent: Option<Agent>,
    pub agent_life: u64,
    /// When its agent knows the last of what it has begun to read of the inventory.
    pub news_us: u64,
    pub vms: BTreeMap<String, Vm>,
    pub storage_cut: bool,
    /// True time since when nothing was wrong with it that could end a lease, but for what
    /// is wrong right now.
    pub well_since_us: u64,
}

impl Host {
    pub fn new(name: String, drift_ppm: i64) -> Self {
        Self {
            name,
            life: 0,
            up: false,
            frozen_until_us: 0,
            drift_ppm,
            hold: Hold::expired(0),
            counter: 0,
            flags: 0,
            agent: None,
            agent_life: 0,
            news_us: 0,
            vms: BTreeMap::new(),
            storage_cut: false,
            well_since_us: 0,
        }
    }

    /// Its own clock at this true time. Boots do not reset it here; only differences count.
    pub fn clock(&self, true_us: u64) -> u64 {
        let shift = true_us.cast_signed() * self.drift_ppm / 1_000_000;
        true_us.saturating_add_signed(shift) + 1_000_000_000
    }

    pub fn incarnation(&self) -> Incarnation {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.life.to_le_bytes());
        id[8..].copy_from_slice(&fnv(&self.name).to_le_bytes());
        Incarnation(id)
    }

    pub fn holder(&self) -> Holder {
        Holder {
            host: self.name.clone(),
            incarnation: self.incarnation(),
            term: self.hold.term(),
        }
    }

    pub fn identity(&self, subject: &str, salt: u64) -> Identity {
        Identity {
            cluster: [1; 16],
            subject: subject.into(),
            host: self.name.clone(),
            incarnation: self.incarnation(),
            salt: salt.to_le_bytes(),
        }
    }

    pub fn claim(
        &self,
        subject: &str,
        salt: u64,
        timing: Timing,
        from_epoch: u64,
        give_up_us: u64,
    ) -> Claim {
        Claim {
            lease: Lease::new(self.identity(subject, salt), timing),
            seen: None,
            give_up_us,
            from_epoch,
            begun: false,
        }
    }

    /// Is this host entitled to run the guest at this true time, and doing it?
    pub fn runs(&self, guest: &str, true_us: u64) -> bool {
        self.up
            && true_us >= self.frozen_until_us
            && self
                .vms
                .get(guest)
                .is_some_and(|vm| vm.runs && vm.claim.lease.may_act(self.clock(true_us), self.hold))
    }

    /// Does some process write the heartbeat?
    pub fn keeps(&self) -> bool {
        self.up && (self.agent.is_some() || !self.vms.is_empty())
    }
}

fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}
