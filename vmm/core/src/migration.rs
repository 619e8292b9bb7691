//! What is asked of a migration, what it says on its way, and what it comes to.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::converge::Goal;

/// Most data connections of one migration.
pub const CONNECTIONS_MAX: u32 = 16;
/// In [`Migrate::connections`]: as the source finds right.
pub const CONNECTIONS_AUTO: u32 = 0;
/// The source itself takes no more than this.
const CONNECTIONS_AUTO_MAX: u32 = 8;

/// How many data connections a migration takes that asks for `wished` on a host with so many
/// processors: a connection keeps one of them busy at most.
pub fn connections(wished: u32, processors: u32) -> u32 {
    match wished {
        CONNECTIONS_AUTO => processors.clamp(1, CONNECTIONS_AUTO_MAX),
        wished => wished.min(CONNECTIONS_MAX),
    }
}

/// `PUT /v1/migration` on the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// Where the target listens: `HOST:PORT`.
    pub to: String,
    /// Connections that carry memory; 0: by the source's processors.
    #[serde(default)]
    pub connections: u32,
    /// When to switch over.
    #[serde(default)]
    pub goal: Goal,
    /// Cap on the rate of all connections together, in bytes per second; 0: none.
    #[serde(default)]
    pub bandwidth_max: u64,
    /// Compare a hash of all guest memory on both sides before the commit.
    #[serde(default)]
    pub verify: bool,
    /// Directory with the certificates for mutual TLS; plain TCP without one.
    #[serde(default)]
    pub tls_dir: Option<String>,
    /// Check and measure everything against the real target, and move nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The two sides find out whether they fit together.
    Handshake,
    /// Memory is on its way while the guest runs.
    Copying,
    /// The guest stands still; the rest is on its way.
    SwitchOver,
    /// The right to run the guest changes hands.
    Commit,
    /// The guest runs on the target.
    Done,
    /// It failed before the commit; the guest runs on here.
    Failed,
    /// A dry run is over: the guest would fit there, and was not touched.
    Rehearsed,
    /// The guest stands still here: whether the target has it could not be found out.
    Uncertain,
}

impl Phase {
    /// It has begun and is not over.
    pub fn is_under_way(self) -> bool {
        matches!(self, Self::Copying | Self::SwitchOver | Self::Commit)
    }

    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Handshake => "asking the target",
            Self::Copying => "copying",
            Self::SwitchOver => "switching over",
            Self::Commit => "handing over",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Rehearsed => "rehearsed",
            Self::Uncertain => "nobody knows who has it",
        }
    }
}

/// `GET /v1/migration`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// How far it is.
    pub phase: Phase,
    /// Round of pre-copy, from 1.
    pub round: u32,
    /// Bytes of memory sent so far.
    pub sent_bytes: u64,
    /// Bytes left of this round.
    pub left_bytes: u64,
    /// Rate of the last round, in the first one so far, in bytes per second.
    pub rate: u64,
    /// Bytes dirtied in the last round.
    pub dirty_bytes: u64,
    /// The same, in bytes per second.
    #[serde(default)]
    pub dirty_rate: u64,
    /// Time to the end, in milliseconds, if it can be told.
    #[serde(default)]
    pub eta_ms: Option<u64>,
    /// Blackout if it were switched over now, in microseconds.
    pub predicted_blackout_us: u64,
    /// What it came to, when it is over.
    pub summary: Option<Summary>,
    /// What a dry run foretells.
    #[serde(default)]
    pub forecast: Option<Forecast>,
    /// Why it failed.
    pub error: Option<String>,
}

impl Progress {
    /// Of a migration that has just been asked for.
    pub fn begun() -> Self {
        Self {
            phase: Phase::Handshake,
            round: 0,
            sent_bytes: 0,
            left_bytes: 0,
            rate: 0,
            dirty_bytes: 0,
            dirty_rate: 0,
            eta_ms: None,
            predicted_blackout_us: 0,
            summary: None,
            forecast: None,
            error: None,
        }
    }

    /// For people, in one line that fits a terminal: what is known by now.
    pub fn words(&self) -> String {
        if self.round == 0 || !self.phase.is_under_way() {
            return self.phase.words().to_owned();
        }
        let mib = |bytes: u64| bytes >> 20;
        let (sent, all) = (self.sent_bytes, self.sent_bytes + self.left_bytes);
        let (round, sent, all, rate) = (self.round, mib(sent), mib(all), mib(self.rate));
        let eta = self.eta_ms.map_or_else(String::new, |eta_ms| {
            format!(", {:.1} s to go", eta_ms as f64 / 1e3)
        });
        // The first round says how fast the guest is.
        let (dirtied, blackout) = match self.predicted_blackout_us {
            0 => Default::default(),
            us => (
                format!(", dirtied at {}", mib(self.dirty_rate)),
                format!(", blackout {:.1} ms", ms(us)),
            ),
        };
        format!("round {round}: {sent} of {all} MiB at {rate} MiB/s{dirtied}{eta}{blackout}")
    }
}

fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

/// Time until `left_bytes`, and what is dirtied meanwhile, and so on, are there, at these rates in
/// bytes per second; in milliseconds. None while nothing is known, or where it has no end.
pub fn eta_ms(left_bytes: u64, rate: u64, dirty_rate: u64) -> Option<u64> {
    // left / rate * (1 + q + q^2 + ...) with q = dirty_rate / rate
    let gains = rate.checked_sub(dirty_rate).filter(|gains| *gains > 0)?;
    let eta = u128::from(left_bytes) * 1000 / u128::from(gains);
    eta.try_into().ok()
}

/// What a migration would come to, as a dry run measured it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// From the request to the guest running on the target, in microseconds.
    pub total_us: u64,
    /// For how long the guest would stand still, in microseconds.
    pub blackout_us: u64,
    /// The share of it that does not depend on memory: stopping, the machine's state, the
    /// hand-over; in microseconds.
    pub fixed_us: u64,
    /// Bytes of memory that would travel.
    pub sent_bytes: u64,
    /// Rounds of pre-copy.
    pub rounds: u32,
    /// What the connections carried, in bytes per second.
    pub link_rate: u64,
    /// How fast the guest dirties memory that was clean, in bytes per second.
    pub dirty_rate: u64,
    /// Processors that dirty memory would be held back by so many per cent of their time.
    pub held_back_percent: u8,
    /// It would give up: the guest dirties memory faster than it can be sent.
    pub gives_up: bool,
}

impl Forecast {
    /// For people, in one line.
    pub fn words(&self) -> String {
        let held_back = match self.held_back_percent {
            0 => String::new(),
            percent => {
                format!("; processors that dirty memory would be held back by {percent} %")
            }
        };
        format!(
            "it would take about {} ms: blackout {:.1} ms (of which {:.1} whatever the guest \
             does), {} MiB in {} rounds; the link carries {} MiB/s, the guest dirties {} \
             MiB/s{held_back}",
            self.total_us / 1000,
            ms(self.blackout_us),
            ms(self.fixed_us),
            self.sent_bytes >> 20,
            self.rounds,
            self.link_rate >> 20,
            self.dirty_rate >> 20,
        )
    }
}

/// Where a blackout went, as the source saw it, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps {
    /// Stopping the processors and finishing device I/O.
    pub stop_us: u64,
    /// Finding and sending the memory that was left.
    pub memory_us: u64,
    /// Copying and sending the machine's state; hashing memory, if it is compared.
    pub save_us: u64,
    /// Letting go of the disks, until the target had poured all of it in and said so.
    pub pour_us: u64,
    /// Handing over the right to run the guest.
    pub commit_us: u64,
    /// Until the target said that it runs.
    pub start_us: u64,
}

impl Steps {
    /// What they are called, in their order.
    pub const NAMES: [&str; 6] = ["stop", "memory", "save", "pour", "commit", "start"];

    /// Each of them, in their order.
    pub fn each_us(&self) -> [u64; Self::NAMES.len()] {
        let Self {
            stop_us,
            memory_us,
            save_us,
            pour_us,
            commit_us,
            start_us,
        } = *self;
        [stop_us, memory_us, save_us, pour_us, commit_us, start_us]
    }

    /// All of them.
    pub fn total_us(&self) -> u64 {
        self.each_us().iter().sum()
    }

    /// For people, in one line.
    pub fn words(&self) -> String {
        let steps = Self::NAMES.iter().zip(self.each_us());
        let steps: Vec<_> = steps
            .map(|(name, us)| format!("{name} {:.2}", ms(us)))
            .collect();
        steps.join(", ")
    }
}

/// What a migration came to, as the source measured it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// From the request to the guest running on the target, in microseconds.
    pub total_us: u64,
    /// From stopping the guest to the target's word that it runs, in microseconds.
    pub blackout_us: u64,
    /// For how long the guest did not run: without the way of the target's word back, in
    /// microseconds.
    #[serde(default)]
    pub guest_blackout_us: u64,
    /// What had been predicted, in microseconds.
    pub predicted_blackout_us: u64,
    /// Where the blackout went.
    #[serde(default)]
    pub steps: Steps,
    /// Bytes of memory sent.
    pub sent_bytes: u64,
    /// Bytes of memory that were zero or never touched, and so were not sent.
    pub skipped_bytes: u64,
    /// Rounds of pre-copy.
    pub rounds: u32,
    /// Memory was compared on both sides and found equal.
    pub verified: bool,
}

impl Summary {
    /// For people, in one line.
    pub fn words(&self) -> String {
        let verified = if self.verified {
            ", memory verified"
        } else {
            ""
        };
        let took = match self.total_us / 1000 {
            ms @ 0..10_000 => format!("{ms} ms"),
            ms => format!("{:.1} s", ms as f64 / 1e3),
        };
        format!(
            "{took}: blackout {:.1} ms (for the guest {:.1}, predicted {:.1}), {} MiB sent, {} MiB \
             left out, {} rounds{verified}",
            ms(self.blackout_us),
            ms(self.guest_blackout_us),
            ms(self.predicted_blackout_us),
            self.sent_bytes >> 20,
            self.skipped_bytes >> 20,
            self.rounds,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dirtied_on_the_way_takes_its_time_too() {
        assert_eq!(eta_ms(1 << 30, 1 << 30, 0), Some(1000));
        assert_eq!(eta_ms(1 << 30, 1 << 30, 1 << 29), Some(2000));
        for (rate, dirty_rate) in [(0, 0), (5, 5), (5, 6)] {
            assert_eq!(eta_ms(1, rate, dirty_rate), None);
        }
        assert_eq!(eta_ms(u64::MAX, 1, 0), None);
    }

    #[test]
    fn words_say_what_is_known() {
        let mut progress = Progress::begun();
        assert_eq!(progress.words(), "asking the target");
        (progress.phase, progress.round) = (Phase::Copying, 1);
        (progress.sent_bytes, progress.left_bytes) = (5 << 20, 300 << 20);
        assert_eq!(progress.words(), "round 1: 5 of 305 MiB at 0 MiB/s");
        (progress.rate, progress.predicted_blackout_us) = (100 << 20, 7_100);
        (progress.dirty_rate, progress.eta_ms) = (50 << 20, Some(6_000));
        assert_eq!(
            progress.words(),
            "round 1: 5 of 305 MiB at 100 MiB/s, dirtied at 50, 6.0 s to go, blackout 7.1 ms"
        );
        progress.phase = Phase::Done;
        assert_eq!(progress.words(), "done");
    }

    #[test]
    fn each_step_is_named_and_counted_once() {
        let steps = Steps {
            stop_us: 1_000,
            memory_us: 2_000,
            save_us: 3_000,
            pour_us: 4_000,
            commit_us: 5_000,
            start_us: 6_000,
        };
        assert_eq!(steps.total_us(), 21_000);
        assert_eq!(
            steps.words(),
            "stop 1.00, memory 2.00, save 3.00, pour 4.00, commit 5.00, start 6.00"
        );
    }

    #[test]
    fn connections_are_as_wished_or_as_many_as_processors_within_limits() {
        let cases = [(0, 1), (0, 2), (0, 64), (3, 1), (99, 2)];
        let taken = cases.map(|(wished, processors)| connections(wished, processors));
        assert_eq!(taken, [1, 2, CONNECTIONS_AUTO_MAX, 3, CONNECTIONS_MAX]);
        assert_eq!(connections(CONNECTIONS_AUTO, 0), 1);
    }
}
