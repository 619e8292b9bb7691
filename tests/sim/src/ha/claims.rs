//! How a lease is wanted: waiting for the end of its holder, claiming it, losing the race.

use cluster_core::event::Event;
use cluster_core::messages::{LeaseSeen, StartOutcome};
use storage_core::lease::{self, Grounds, Held};
use storage_core::observer::Verdict;
use storage_core::record::LeaseRecord;

use super::event::SECOND;
use super::host::Claim;
use super::storage::LEAD;
use super::world::World;
use crate::harness::Trace;

/// How long a process waits for a lease's holder to be certainly gone.
const CLAIM_PATIENCE_US: u64 = 3 * SECOND;

impl World {
    pub fn new_claim(&mut self, host: usize, subject: &str, from_epoch: u64) -> Claim {
        self.serial += 1;
        let give_up_us = self.queue.now_us() + CLAIM_PATIENCE_US;
        self.hosts[host].claim(subject, self.serial, self.timing, from_epoch, give_up_us)
    }

    pub fn contend(&mut self, host: usize, from_epoch: u64) {
        let busy = self.hosts[host]
            .agent
            .as_ref()
            .is_none_or(|agent| agent.lead.is_some());
        if busy {
            return;
        }
        let claim = self.new_claim(host, LEAD, from_epoch);
        if let Some(agent) = self.hosts[host].agent.as_mut() {
            agent.lead = Some(claim);
        }
        self.look(host, LEAD);
    }

    pub fn claim_mut(&mut self, host: usize, subject: &str) -> Option<&mut Claim> {
        let at = &mut self.hosts[host];
        if subject == LEAD {
            return at.agent.as_mut()?.lead.as_mut();
        }
        at.vms.get_mut(subject).map(|vm| &mut vm.claim)
    }

    pub fn try_claims(&mut self, host: usize, trace: &mut Trace) {
        let at = &self.hosts[host];
        let waits = |claim: &Claim| claim.seen.is_some() && !claim.begun;
        let vms = at
            .vms
            .iter()
            .filter(|(_, vm)| waits(&vm.claim))
            .map(|(name, _)| name.clone());
        let mut subjects: Vec<String> = vms.collect();
        if at
            .agent
            .as_ref()
            .and_then(|a| a.lead.as_ref())
            .is_some_and(waits)
        {
            subjects.push(LEAD.into());
        }
        for subject in subjects {
            self.try_claim(host, &subject, trace);
        }
    }

    /// Claims as soon as the holder that was read is certainly gone.
    pub fn try_claim(&mut self, host: usize, subject: &str, trace: &mut Trace) {
        let now_us = self.queue.now_us();
        let watch_us = self.timing.watch_us(self.fencing || subject == LEAD);
        let at = &self.hosts[host];
        let Some(agent) = &at.agent else { return };
        let claim = match subject {
            LEAD => agent.lead.as_ref(),
            guest => at.vms.get(guest).map(|vm| &vm.claim),
        };
        let Some(claim) = claim.filter(|claim| !claim.begun) else {
            return;
        };
        let Some((last, read_us)) = claim.seen.clone() else {
            return;
        };
        let epoch = last.as_ref().map_or(0, |last| last.epoch);
        let holder = last.as_ref().and_then(|last| last.holder.as_ref());
        let verdict = holder.and_then(|holder| {
            let other = self.index(&holder.host)?;
            Some(
                agent
                    .observers
                    .get(&other)?
                    .verdict(holder, read_us, watch_us),
            )
        });
        let verdict = verdict.unwrap_or(Verdict::Unknown);
        let grounds = lease::grounds(claim.lease.identity(), last.as_ref(), verdict);
        let (from_epoch, give_up_us) = (claim.from_epoch, claim.give_up_us);
        match grounds {
            _ if epoch != from_epoch => self.lost_race(host, subject, last.as_ref(), trace),
            Ok(grounds) => self.begin_claim(host, subject, last, grounds, trace),
            Err(Held::ByUs { .. }) if subject == LEAD => {
                if let (Some(claim), Some(last)) = (self.claim_mut(host, LEAD), last) {
                    claim.begun = true;
                    self.lease_step(host, LEAD, lease::Event::Adopt { last, died: false }, trace);
                }
            }
            Err(_) if now_us < give_up_us => {}
            Err(held) => {
                let why = held.to_string();
                self.answer(host, subject, StartOutcome::Refused { why }, trace);
                self.forget_claim(host, subject);
            }
        }
    }

    pub fn begin_claim(
        &mut self,
        host: usize,
        subject: &str,
        last: Option<LeaseRecord>,
        grounds: Grounds,
        trace: &mut Trace,
    ) {
        let can_fence = self.fencing && subject != LEAD;
        if let Some(claim) = self.claim_mut(host, subject) {
            claim.begun = true;
        }
        let event = lease::Event::Claim {
            last,
            grounds,
            can_fence,
        };
        self.lease_step(host, subject, event, trace);
    }

    pub fn lost_race(
        &mut self,
        host: usize,
        subject: &str,
        last: Option<&LeaseRecord>,
        trace: &mut Trace,
    ) {
        let seen: LeaseSeen = last.into();
        if subject == LEAD {
            self.forget_claim(host, LEAD);
            return self.tell(host, Event::LeaderLease(seen), trace);
        }
        self.answer(host, subject, StartOutcome::LostRace { seen }, trace);
        self.forget_claim(host, subject);
    }

    pub fn forget_claim(&mut self, host: usize, subject: &str) {
        let at = &mut self.hosts[host];
        if subject == LEAD {
            if let Some(agent) = at.agent.as_mut() {
                agent.lead = None;
            }
        } else {
            at.vms.remove(subject);
        }
    }
}
