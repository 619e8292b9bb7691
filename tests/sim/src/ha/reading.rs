//! What a host learns from the datastore: heartbeats, who leads, who has a guest.

use cluster_core::event::Event;
use storage_core::lease;
use storage_core::record::LeaseRecord;

use super::event::{Ev, Input, Reading};
use super::storage::LEAD;
use super::world::World;
use crate::harness::Trace;

impl World {
    pub fn read(
        &mut self,
        host: usize,
        agent: u64,
        issued_us: u64,
        read: Option<Reading>,
        trace: &mut Trace,
    ) {
        let now_us = self.queue.now_us();
        let at = &mut self.hosts[host];
        if at.agent_life != agent || !at.up {
            return;
        }
        let clock_us = at.clock(now_us);
        let own_term = at.hold.is_live(clock_us).then(|| at.hold.term());
        let Some(agent) = at.agent.as_mut() else {
            return;
        };
        let Some(read) = read else {
            for observer in agent.observers.values_mut() {
                observer.failed();
            }
            return;
        };
        let mut sightings = Vec::new();
        for (other, sight) in read.beats.iter().filter(|(other, _)| **other != host) {
            let observer = agent.observers.entry(*other).or_default();
            observer.read(issued_us, clock_us, sight, own_term, &self.timing);
            let Some(record) = observer.record().cloned() else {
                continue;
            };
            sightings.push(Event::Sighted {
                host: record.host.clone(),
                record: Some(record),
                silent_us: observer.silent_us(),
            });
        }
        for sighting in sightings {
            self.tell(host, sighting, trace);
        }
        self.tell_lead(host, read.lead.as_ref(), trace);
        self.try_claims(host, trace);
    }

    /// The leader lease was read; one that names us and that no process keeps is adopted.
    pub fn tell_lead(&mut self, host: usize, last: Option<&LeaseRecord>, trace: &mut Trace) {
        self.tell(host, Event::LeaderLease(last.into()), trace);
        let at = &self.hosts[host];
        let mine =
            last.is_some_and(|l| l.holder.as_ref().is_some_and(|h| h.same_boot(&at.holder())));
        let keeps = at.agent.as_ref().is_some_and(|agent| agent.lead.is_some());
        if let (true, false, Some(last)) = (mine, keeps, last) {
            let claim = self.new_claim(host, LEAD, last.epoch);
            if let Some(agent) = self.hosts[host].agent.as_mut() {
                agent.lead = Some(claim);
            }
            let event = lease::Event::Adopt {
                last: last.clone(),
                died: false,
            };
            self.lease_step(host, LEAD, event, trace);
        }
    }

    pub fn read_leases(&mut self, host: usize, guests: Vec<String>) {
        let agent = self.hosts[host].agent_life;
        for guest in guests {
            if self.reaches_storage(host) {
                let took = self.latency() + self.latency();
                let last = self.storage.last(&guest).cloned();
                self.queue.after(
                    took,
                    Ev::LeaseRead {
                        host,
                        agent,
                        guest,
                        last,
                    },
                );
            }
        }
    }

    pub fn look(&mut self, host: usize, subject: &str) {
        let took = self.latency() + self.latency();
        let input = if self.reaches_storage(host) {
            Input::Seen(self.storage.last(subject).cloned())
        } else {
            Input::NotRead
        };
        self.lease_hears(took, host, subject, input);
    }
}
