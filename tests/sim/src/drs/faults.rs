//! What goes wrong meanwhile: hosts die and come back, agents are lost, leaders change; and
//! what HA does about it.

use std::collections::BTreeSet;

use cluster_core::balance::Move;
use cluster_core::model::{Cluster, Guest, HostMode};
use cluster_core::rules::violations;
use cluster_core::whatif::restart;

use super::world::World;
use super::{Event, MINUTE_US};
use crate::harness::{Trace, Violation};
use crate::queue::Queue;
use crate::rng::Rng;
use crate::skewed;

/// Once in so many minutes, on average, an operator empties a host for an hour ...
const MAINTENANCE_EVERY: u64 = 700;
/// ... a host dies ...
const DEATH_EVERY: u64 = 300;
/// ... an agent is lost for a while ...
const SILENCE_EVERY: u64 = 200;
/// ... and the leader changes.
const NEW_LEADER_EVERY: u64 = 240;
/// A new leader observes for so many minutes before it moves anything.
const OBSERVES_MINUTES: u64 = 2;

/// Draws the same for every world: what happens in this minute, the same to every world.
#[derive(Clone)]
pub struct Faults {
    rng: Rng,
    hosts: u64,
    /// Nothing but maintenance happens.
    pub calm: bool,
}

/// A failure or an act of the operator.
pub enum Fault {
    Maintenance(String),
    Death(String),
    Silence(String),
    NewLeader,
}

impl Faults {
    pub fn new(rng: Rng, hosts: u64, calm: bool) -> Self {
        Self { rng, hosts, calm }
    }

    /// Draws what happens now, and for how many minutes it lasts.
    pub fn draw(&mut self) -> Vec<(Fault, u64)> {
        let mut drawn = Vec::new();
        if self.rng.below(MAINTENANCE_EVERY) == 0 {
            drawn.push((Fault::Maintenance(self.host()), 60));
        }
        if self.calm {
            return drawn;
        }
        if self.rng.below(DEATH_EVERY) == 0 {
            drawn.push((Fault::Death(self.host()), self.rng.between(10, 90)));
        }
        if self.rng.below(SILENCE_EVERY) == 0 {
            drawn.push((Fault::Silence(self.host()), self.rng.between(2, 20)));
        }
        if self.rng.below(NEW_LEADER_EVERY) == 0 {
            drawn.push((Fault::NewLeader, 0));
        }
        drawn
    }

    fn host(&mut self) -> String {
        skewed::host_name(self.rng.below(self.hosts))
    }
}

impl World {
    /// Something happens. A host that is not in service is spared.
    pub fn suffer(
        &mut self,
        fault: &Fault,
        minutes: u64,
        queue: &mut Queue<Event>,
        trace: &mut Trace,
    ) {
        let now_us = queue.now_us();
        let (host, mode, words) = match fault {
            Fault::Maintenance(host) => (host, HostMode::Maintenance, "goes into maintenance"),
            Fault::Death(host) => (host, HostMode::Lost, "dies"),
            Fault::Silence(host) => (host, HostMode::Quiet, "loses its agent"),
            Fault::NewLeader => {
                trace.note(now_us, || "another host leads".to_owned());
                self.change_leader();
                self.leaderless_until = now_us / MINUTE_US + OBSERVES_MINUTES;
                return;
            }
        };
        if self.cluster.hosts[host].mode != HostMode::Active {
            return;
        }
        trace.note(now_us, || format!("{host} {words}"));
        self.set_mode(host, mode);
        self.promised = false;
        queue.after(minutes * MINUTE_US, Event::Back(host.clone()));
        if mode == HostMode::Lost {
            self.tally.deaths += 1;
            // Both ends are needed until the hand-over: the guest stays the source's.
            let lost = |one: &Move| one.from == *host || one.to == *host;
            let trips = self.under_way.values().map(|trip| trip.one.clone());
            for one in trips.filter(lost).collect::<Vec<_>>() {
                self.under_way.remove(&one.guest);
                if one.from != *host {
                    self.failed(now_us, &one.guest, "the target does not answer", trace);
                }
            }
            self.excuse();
        }
    }

    /// A host that died comes back empty of what was restarted elsewhere.
    pub fn recover(&mut self, host: &str) {
        self.set_mode(host, HostMode::Active);
        self.promised = false;
        self.excuse();
    }

    /// HA: guests of dead hosts are restarted where there is room, in their order. Were any?
    pub fn restart_the_lost(&mut self, trace: &mut Trace, now_us: u64) -> Result<bool, Violation> {
        let lost = |guest: &Guest| {
            let host = guest.host.as_ref().map(|host| &self.cluster.hosts[host]);
            host.is_some_and(|host| host.mode == HostMode::Lost)
        };
        if !self.cluster.guests.values().any(lost) {
            return Ok(false);
        }
        let before = self.broken_hard();
        let mut any = false;
        for one in restart(&mut self.with_arriving()) {
            trace.note(now_us, || {
                let at = one.host.as_deref().unwrap_or("nowhere yet");
                format!("{} restarts on {at}: {}", one.guest, one.because)
            });
            if let (Some(host), Some(guest)) = (one.host, self.cluster.guests.get_mut(&one.guest)) {
                guest.host = Some(host);
                self.tally.restarts += 1;
                any = true;
            }
        }
        if any {
            let broken = self.broken_hard();
            if let Some((guest, rule)) = broken.difference(&before).next() {
                let what = format!("a restart breaks rule {rule} for {guest}");
                return Err(Violation {
                    at_us: now_us,
                    what,
                });
            }
            self.promised = false;
            // What is on its way may meet what was restarted meanwhile.
            self.excuse();
        }
        Ok(any)
    }

    /// Guests that run and the hard rules that they break.
    fn broken_hard(&self) -> BTreeSet<(String, String)> {
        let all = violations(&self.as_the_leader_sees_it()).into_iter();
        let hard = all.filter(|(_, one)| one.hard);
        hard.map(|(guest, one)| (guest, one.rule)).collect()
    }

    /// What arrives takes room on its target too.
    pub(super) fn with_arriving(&self) -> Cluster {
        let mut cluster = self.cluster.clone();
        for (name, trip) in &self.under_way {
            let mut arriving = self.cluster.guests[name].clone();
            arriving.host = Some(trip.one.to.clone());
            cluster.guests.insert(format!("{name} arriving"), arriving);
        }
        cluster
    }

    /// Hard rules that are broken now, or will be once what is under way arrives, are broken by
    /// a failure.
    pub(super) fn excuse(&mut self) {
        let now = self.as_the_leader_sees_it();
        let mut soon = now.clone();
        for (name, trip) in &self.under_way {
            if let Some(guest) = soon.guests.get_mut(name) {
                guest.host = Some(trip.one.to.clone());
            }
        }
        for (_, broken) in violations(&now).into_iter().chain(violations(&soon)) {
            if broken.hard {
                self.excused.insert(broken.rule);
            }
        }
    }
}
