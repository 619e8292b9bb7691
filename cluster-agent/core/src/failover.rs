//! Restarting guests that nobody runs: in which order, where, how often.
//!
//! ```text
//!            lost                    placed                answer: running
//!   held ----------> to be started ---------> ordered -----------------------> held
//!                     ^   ^   |  \               |  answer: failed, or none in time
//!        room appears |   |   |   \ no room      v
//!                  waits for room  `-------   tried elsewhere, later; given up after
//!                         waits for another   `start_attempts`
//! ```
//!
//! What is kept here is only orders under way and failures counted. A new leader starts
//! with nothing and derives everything from leases: at worst it orders what the old leader
//! ordered, and the lease lets one of both win.

mod order;
mod plan;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::messages::StartOutcome;
use crate::model::{Cluster, Desired, GuestId, HostId, HostMode};
use crate::owners::{Loss, Owners, Whereabouts};
use crate::placement::{Choice, Nowhere, place};
use crate::settings::Settings;
use order::{ranks, waits_for};
use plan::Plan;

/// Most orders given in one step.
const MAX_ORDERS_PER_STEP: usize = 64;
/// How many places are searched for guests that then fit nowhere, in one step.
const MAX_MISSES_PER_STEP: usize = 64;
/// Longest pause between two tries of a guest.
const MAX_RETRY_US: u64 = 300_000_000;
/// A guest that its host gave up before it ran for so long has failed to start.
const STEADY_US: u64 = 600_000_000;
/// Pause after a refusal, which mostly means that somebody knows more than we do.
const REFUSED_PAUSE_US: u64 = 250_000;

/// What the leader decides about a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Start it there.
    Order {
        /// Which.
        guest: GuestId,
        /// Where.
        host: HostId,
        /// The lease epoch to take over from.
        from_epoch: u64,
        /// Why it is to be started and why there.
        because: String,
    },
    /// It has to wait; said once per reason.
    Waits {
        /// Which.
        guest: GuestId,
        /// For what.
        because: String,
    },
    /// A start failed or was not answered.
    Failed {
        /// Which.
        guest: GuestId,
        /// Where, why, and what happens next.
        because: String,
    },
}

/// What is to be decided on.
pub struct Situation<'a> {
    /// The cluster with each guest on the host that holds it.
    pub cluster: &'a Cluster,
    /// Where each guest is.
    pub whereabouts: &'a BTreeMap<GuestId, Whereabouts>,
    /// What is known of them besides.
    pub owners: &'a Owners,
    /// Settings.
    pub settings: &'a Settings,
}

#[derive(Debug, Clone)]
struct Ordered {
    host: HostId,
    from_epoch: u64,
    since_us: u64,
}

#[derive(Debug, Clone, Default)]
struct Trouble {
    attempts: u32,
    /// Why the last of them failed.
    last: String,
    tried: BTreeSet<HostId>,
    not_before_us: u64,
    /// Where it was started at last, and when, while it may yet turn out to have failed there.
    ran: Option<(HostId, u64)>,
    /// Revision of the spec with which it has had its trouble, once that was looked up.
    revision: Option<u64>,
}

/// The restarts under way.
#[derive(Debug, Clone, Default)]
pub struct Failover {
    orders: BTreeMap<GuestId, Ordered>,
    troubles: BTreeMap<GuestId, Trouble>,
    lost_since_us: BTreeMap<GuestId, u64>,
    said: BTreeMap<GuestId, String>,
    /// Where a guest goes best, and who says so.
    hints: BTreeMap<GuestId, (HostId, &'static str)>,
    /// Guests for which a place was sought in vain since the search last came to its end.
    missed: BTreeSet<GuestId>,
}

impl Failover {
    /// Nothing is under way and nobody waits.
    pub fn is_idle(&self) -> bool {
        self.orders.is_empty() && self.said.is_empty() && self.lost_since_us.is_empty()
    }

    /// Guests ordered and not yet answered, with their targets.
    pub fn under_way(&self) -> impl Iterator<Item = (&GuestId, &HostId)> {
        self.orders
            .iter()
            .map(|(guest, ordered)| (guest, &ordered.host))
    }

    /// Guests that wait, and for what.
    pub fn waiting(&self) -> impl Iterator<Item = (&GuestId, &String)> {
        self.said.iter()
    }

    /// How many starts of it have failed since it last ran or somebody acted.
    pub fn failed_starts(&self, guest: &GuestId) -> u32 {
        self.troubles
            .get(guest)
            .map_or(0, |trouble| trouble.attempts)
    }

    /// Somebody found a host for a guest that is about to be wanted.
    pub fn hint(&mut self, guest: &GuestId, host: HostId, who: &'static str) {
        self.hints.insert(guest.clone(), (host, who));
    }

    /// Gives a guest a fresh start: the operator wants it tried again. A new revision of its spec
    /// does the same.
    pub fn forgive(&mut self, guest: &GuestId) {
        self.troubles.remove(guest);
    }

    /// A member answered an order.
    pub fn answered(
        &mut self,
        now_us: u64,
        host: &HostId,
        guest: &GuestId,
        outcome: &StartOutcome,
        settings: &Settings,
    ) -> Option<Decision> {
        if self
            .orders
            .get(guest)
            .is_none_or(|ordered| ordered.host != *host)
        {
            return None;
        }
        self.orders.remove(guest);
        match outcome {
            StartOutcome::Running { .. } => {
                let trouble = self.troubles.entry(guest.clone()).or_default();
                trouble.ran = Some((host.clone(), now_us));
                self.said.remove(guest);
                None
            }
            StartOutcome::LostRace { .. } => None,
            StartOutcome::Failed { why } => Some(self.failed(guest, host, why, settings)),
            StartOutcome::Refused { why } => {
                let because = format!("{host} refused to start it: {why}");
                let said = self.not_begun(guest, host, because);
                let trouble = self.troubles.entry(guest.clone()).or_default();
                trouble.not_before_us = now_us + REFUSED_PAUSE_US;
                Some(said)
            }
        }
    }

    /// The order came to nothing, which says nothing about the guest: elsewhere, then.
    fn not_begun(&mut self, guest: &GuestId, host: &HostId, because: String) -> Decision {
        let trouble = self.troubles.entry(guest.clone()).or_default();
        trouble.tried.insert(host.clone());
        self.say_failed(guest, because)
    }

    fn failed(
        &mut self,
        guest: &GuestId,
        host: &HostId,
        why: &str,
        settings: &Settings,
    ) -> Decision {
        let trouble = self.troubles.entry(guest.clone()).or_default();
        trouble.attempts += 1;
        trouble.last = format!("on {host}: {why}");
        trouble.tried.insert(host.clone());
        let next = if trouble.attempts >= settings.start_attempts {
            "given up until somebody acts"
        } else {
            "will be tried again"
        };
        let because = format!(
            "attempt {} of {} on {host}: {why}; {next}",
            trouble.attempts, settings.start_attempts
        );
        self.say_failed(guest, because)
    }

    /// Until the next attempt this is what it waits for.
    fn say_failed(&mut self, guest: &GuestId, because: String) -> Decision {
        self.said
            .insert(guest.clone(), format!("start failed: {because}"));
        Decision::Failed {
            guest: guest.clone(),
            because,
        }
    }

    /// Decides what to do now.
    pub fn step(&mut self, now_us: u64, at: &Situation<'_>) -> Vec<Decision> {
        let mut decisions = self.overdue(now_us, at);
        let lost = self.lost(now_us, at);
        if lost.is_empty() {
            return decisions;
        }
        decisions.extend(self.given_up_by_hosts(now_us, &lost, at.settings));
        let mut plan = Plan::new(self, at);
        let ranks = ranks(at.cluster, &lost);
        let mut queue: Vec<&GuestId> = lost.keys().copied().collect();
        // Those for which there was no place come last, lest they hide the others for good.
        queue.sort_by_key(|guest| (self.missed.contains(*guest), ranks[*guest], *guest));
        let missed_before = self.missed.len();
        let (mut orders, mut misses) = (0, 0);
        for guest in queue {
            if orders >= MAX_ORDERS_PER_STEP || misses >= MAX_MISSES_PER_STEP {
                if self.missed.len() == missed_before {
                    self.missed.clear();
                }
                return decisions;
            }
            let (from_epoch, loss) = lost[guest];
            match self.try_start(now_us, guest, loss, at, &mut plan) {
                Next::Nothing => {}
                Next::Waits(because) => {
                    misses += usize::from(self.missed.contains(guest));
                    if self.said.get(guest) != Some(&because) {
                        self.said.insert(guest.clone(), because.clone());
                        decisions.push(Decision::Waits {
                            guest: guest.clone(),
                            because,
                        });
                    }
                }
                Next::Start(host, because) => {
                    orders += 1;
                    self.said.remove(guest);
                    let ordered = Ordered {
                        host: host.clone(),
                        from_epoch,
                        since_us: now_us,
                    };
                    self.orders.insert(guest.clone(), ordered);
                    decisions.push(Decision::Order {
                        guest: guest.clone(),
                        host,
                        from_epoch,
                        because,
                    });
                }
            }
        }
        self.missed.clear();
        decisions
    }

    /// Guests whose host let go of them soon after they began to run there: their VMM died again
    /// and again.
    fn given_up_by_hosts(
        &mut self,
        now_us: u64,
        lost: &BTreeMap<&GuestId, (u64, &Loss)>,
        settings: &Settings,
    ) -> Vec<Decision> {
        let mut decisions = Vec::new();
        for (guest, (_, loss)) in lost {
            let trouble = self.troubles.get_mut(*guest);
            let Some((host, since_us)) = trouble.and_then(|trouble| trouble.ran.take()) else {
                continue;
            };
            if **loss == Loss::Free && now_us < since_us + STEADY_US {
                let why = format!("let go of after {} s", (now_us - since_us) / 1_000_000);
                decisions.push(self.failed(guest, &host, &why, settings));
                let attempts = self.failed_starts(guest);
                let trouble = self.troubles.entry((*guest).clone()).or_default();
                trouble.not_before_us = now_us + retry_us(attempts, settings);
            } else {
                self.troubles.remove(*guest);
            }
        }
        decisions
    }

    /// Orders nobody answered are given to another host.
    fn overdue(&mut self, now_us: u64, at: &Situation<'_>) -> Vec<Decision> {
        // What was ordered of a host that is lost now nobody will answer.
        let lost = |host: &HostId| {
            let host = at.cluster.hosts.get(host);
            host.is_none_or(|host| host.mode == HostMode::Lost)
        };
        self.orders.retain(|_, ordered| !lost(&ordered.host));
        let patience = at.settings.timings.order_patience_ms * 1000;
        let late: Vec<(GuestId, HostId)> = self
            .orders
            .iter()
            .filter(|(_, ordered)| now_us >= ordered.since_us + patience)
            .map(|(guest, ordered)| (guest.clone(), ordered.host.clone()))
            .collect();
        late.into_iter()
            .map(|(guest, host)| {
                self.orders.remove(&guest);
                let because = format!("{host} gave no answer within {} ms", patience / 1000);
                self.not_begun(&guest, &host, because)
            })
            .collect()
    }

    /// Guests that shall run and have no living holder; forgets what is over.
    fn lost<'a>(
        &mut self,
        now_us: u64,
        at: &Situation<'a>,
    ) -> BTreeMap<&'a GuestId, (u64, &'a Loss)> {
        let mut lost = BTreeMap::new();
        self.forgive_changed(at.cluster);
        for (guest, spec) in &at.cluster.guests {
            match at.whereabouts.get(guest) {
                Some(Whereabouts::Lost(epoch, loss)) if spec.desired == Desired::Running => {
                    // The lease moved on under an order: it has been answered by events.
                    if self
                        .orders
                        .get(guest)
                        .is_some_and(|o| o.from_epoch != *epoch)
                    {
                        self.orders.remove(guest);
                    }
                    self.lost_since_us.entry(guest.clone()).or_insert(now_us);
                    lost.insert(guest, (*epoch, loss));
                }
                Some(Whereabouts::Unknown) | None => {}
                _ => self.over(now_us, guest),
            }
        }
        self.orders
            .retain(|guest, _| at.cluster.guests.contains_key(guest));
        self.said
            .retain(|guest, _| at.cluster.guests.contains_key(guest));
        self.hints
            .retain(|guest, _| at.cluster.guests.contains_key(guest));
        lost
    }

    /// Whoever changed a guest wants it tried anew.
    fn forgive_changed(&mut self, cluster: &Cluster) {
        self.troubles.retain(|guest, trouble| {
            let revision = cluster.guests.get(guest).map(|spec| spec.revision);
            let known = trouble.revision.or(revision);
            trouble.revision = known;
            known == revision
        });
    }

    fn over(&mut self, now_us: u64, guest: &GuestId) {
        let steady = |trouble: &Trouble| {
            let since_us = trouble.ran.as_ref().map(|(_, since_us)| *since_us);
            since_us.is_some_and(|since_us| now_us >= since_us + STEADY_US)
        };
        if self.troubles.get(guest).is_some_and(steady) {
            self.troubles.remove(guest);
        }
        self.orders.remove(guest);
        self.lost_since_us.remove(guest);
        self.said.remove(guest);
    }

    fn try_start(
        &mut self,
        now_us: u64,
        guest: &GuestId,
        loss: &Loss,
        at: &Situation<'_>,
        plan: &mut Plan<'_>,
    ) -> Next {
        let spec = &plan.cluster.guests[guest];
        if self.orders.contains_key(guest) {
            return Next::Nothing;
        }
        if let (Loss::Lapsed(host, _), false) = (loss, spec.protected) {
            return Next::Waits(format!("it is not protected and {host} is not back"));
        }
        let since_us = self.lost_since_us.get(guest).copied().unwrap_or(now_us);
        if let Some(because) = waits_for(now_us, since_us, guest, at) {
            return Next::Waits(because);
        }
        let trouble = self.troubles.get(guest).cloned().unwrap_or_default();
        if trouble.attempts >= at.settings.start_attempts {
            let Trouble { attempts, last, .. } = trouble;
            return Next::Waits(format!(
                "given up after {attempts} attempts, the last {last}"
            ));
        }
        if now_us < trouble.not_before_us {
            return Next::Nothing;
        }
        let mut avoid = trouble.tried.clone();
        avoid.extend(plan.full(at.settings));
        match self.find_place(guest, &avoid, plan) {
            Ok(choice) => {
                plan.take(guest, &choice.host);
                Next::Start(choice.host, format!("{}; {}", why(loss), choice.because))
            }
            Err(nowhere) if trouble.tried.is_empty() => {
                self.missed.insert(guest.clone());
                if plan.full(at.settings).next().is_some() {
                    return Next::Waits(
                        "the hosts that could take it are busy starting guests".into(),
                    );
                }
                Next::Waits(nowhere.because)
            }
            Err(_) => {
                // Tried everywhere it could go: begin anew after a pause.
                let pause = retry_us(trouble.attempts, at.settings);
                let trouble = self.troubles.entry(guest.clone()).or_default();
                trouble.tried.clear();
                trouble.not_before_us = now_us + pause;
                Next::Nothing
            }
        }
    }

    /// Where the hint says if that still holds, else the best place there is.
    fn find_place(
        &mut self,
        guest: &GuestId,
        avoid: &BTreeSet<HostId>,
        plan: &Plan<'_>,
    ) -> Result<Choice, Nowhere> {
        if let Some((hint, who)) = self
            .hints
            .remove(guest)
            .filter(|(host, _)| !avoid.contains(host))
        {
            let hosts = plan.cluster.hosts.keys();
            let others = hosts.filter(|host| **host != hint).cloned().collect();
            let hinted = place(&plan.cluster, &plan.book, &plan.usage, guest, &others);
            if let Ok(Choice { host, .. }) = hinted {
                let because = format!("{who} chose {host}");
                return Ok(Choice { host, because });
            }
        }
        place(&plan.cluster, &plan.book, &plan.usage, guest, avoid)
    }
}

enum Next {
    Nothing,
    Waits(String),
    Start(HostId, String),
}

/// Why a guest is started that nobody has lost.
pub const NOBODY_HOLDS_IT: &str = "it shall run and nobody holds it";

fn why(loss: &Loss) -> String {
    match loss {
        Loss::Free => NOBODY_HOLDS_IT.into(),
        Loss::Rebooted(host) => format!("its host {host} was rebooted"),
        Loss::Lapsed(_, why) => why.clone(),
    }
}

fn retry_us(attempts: u32, settings: &Settings) -> u64 {
    ((settings.timings.retry_after_ms * 1000) << attempts.min(8)).min(MAX_RETRY_US)
}

#[cfg(test)]
mod tests;
