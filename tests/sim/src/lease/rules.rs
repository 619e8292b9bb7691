//! The rules of the protocol that the mutation check drops one at a time.
//!
//! Each is dropped in the fake shell around the real core, so that the core itself needs no
//! switch that could be left on.

use storage_core::hold::Hold;
use storage_core::timing::Timing;

/// A rule that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Broken {
    /// A contender watches for less than the inequality demands.
    Watch,
    /// The deadline counts from the answer of a heartbeat instead of from its sending.
    SentTime,
    /// A late answer extends the old term instead of starting a new one.
    Term,
    /// After a lapse the holder only looks whether its epoch is still the last.
    Renewal,
    /// The winner of a link does not look whether a later epoch exists.
    Confirm,
    /// What never got an answer is taken for not done.
    Settle,
    /// A heartbeat read before the lease counts as proof of a reboot.
    ReadOrder,
    /// A boot beats at once, while writes of the boot before may be under way.
    BootWait,
    /// A contender counts time in which it could not reach the storage.
    OwnGap,
    /// The target does not fence although the watch was cut short for it.
    Fence,
    /// A guest's process takes up the lease of one that died as if it had ended in order.
    Successor,
    /// Where the fence fails, nobody waits for late writes to die instead.
    FenceWait,
    /// The guest writes until it is told to stop; nobody looks at the deadline.
    Gate,
    /// The source of a hand-over goes on writing until it knows the outcome.
    Commit,
}

impl Broken {
    /// Every rule, for the mutation check.
    pub const ALL: [Self; 14] = [
        Self::Watch,
        Self::SentTime,
        Self::Term,
        Self::Renewal,
        Self::Confirm,
        Self::Settle,
        Self::ReadOrder,
        Self::BootWait,
        Self::OwnGap,
        Self::Fence,
        Self::Successor,
        Self::FenceWait,
        Self::Gate,
        Self::Commit,
    ];
}

/// The protocol with at most one rule broken.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules(pub Option<Broken>);

impl Rules {
    /// Whether this rule is the broken one.
    pub fn broken(self, rule: Broken) -> bool {
        self.0 == Some(rule)
    }

    /// How long a contender watches.
    pub fn watch_us(self, timing: &Timing, fenced: bool) -> u64 {
        let watch_us = timing.watch_us(fenced);
        if self.broken(Broken::Watch) {
            watch_us * 7 / 10
        } else {
            watch_us
        }
    }

    /// The hold after a heartbeat was acknowledged.
    pub fn after_ack(self, hold: Hold, sent_us: u64, now_us: u64, reach_us: u64) -> Hold {
        if self.broken(Broken::SentTime) {
            return hold.after_ack(now_us, now_us, reach_us);
        }
        let next = hold.after_ack(sent_us, now_us, reach_us);
        if self.broken(Broken::Term) {
            return Hold::new(next.deadline_us(), hold.term());
        }
        next
    }

    /// The timings by which an observer judges its own gaps.
    pub fn observer_timing(self, timing: &Timing) -> Timing {
        let mut timing = *timing;
        if self.broken(Broken::OwnGap) {
            timing.reach_ms = 3_600_000;
        }
        timing
    }
}
