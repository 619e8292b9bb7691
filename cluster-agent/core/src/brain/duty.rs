//! Who leads, what the leader does, and when a host leaves.

use alloc::vec::Vec;

use super::Brain;
use crate::event::Action;
use crate::leader::{Contest, vacancy};
use crate::settings::HostEntry;

/// So often a host that is to leave asks for it, while something keeps it.
const LEAVE_EVERY_US: u64 = 1_000_000;

impl Brain {
    /// Told to leave, empty and without the lead: nothing keeps this host here.
    pub(super) fn leave(&mut self, actions: &mut Vec<Action>) {
        // Until the lead is seen to be another's or nobody's: a release takes its time.
        let needed = self.leader() == Some(&self.me) && !self.peers.is_empty();
        let leaving = self.entry().is_some_and(|entry| entry.leaving);
        if leaving && !needed && self.member.is_empty() && self.now_us >= self.next_leave_us {
            self.next_leave_us = self.now_us + LEAVE_EVERY_US;
            actions.push(Action::Leave);
        }
    }

    /// What the datastore says of this host; nothing once it is no member any more.
    pub(super) fn entry(&self) -> Option<&HostEntry> {
        self.inventory.as_ref()?.hosts.get(&self.me)
    }

    pub(super) fn seek_lead(&mut self, actions: &mut Vec<Action>) {
        let (now_us, t) = (self.now_us, self.waits());
        let me = (&self.me, self.incarnation);
        let Some(entry) = self.entry() else {
            return;
        };
        let mine = (&self.me, self.note, entry.maintenance || entry.leaving);
        if self.leads() {
            if let Some(because) = self.contest.step_down(now_us, mine, &self.peers, &t) {
                self.leading = None;
                self.contest = Contest::default();
                actions.push(Action::ReleaseLeader { because });
            }
            return;
        }
        if !self.lead_read || !self.hold.is_live(now_us) {
            return;
        }
        let vacancy = vacancy(&self.lead_seen, me, self.hold.term(), &self.peers, &t);
        if let Some(because) = self
            .contest
            .contend(now_us, vacancy.as_ref(), mine, &self.peers, &t)
        {
            let from_epoch = self.lead_seen.epoch;
            actions.push(Action::ContendForLeader {
                from_epoch,
                because,
            });
        }
    }

    pub(super) fn lead(&mut self, actions: &mut Vec<Action>) {
        if !self.leads() {
            return;
        }
        let (now_us, settings, t) = (self.now_us, self.settings(), self.waits());
        let me = (&self.me, self.incarnation);
        let Some(leading) = &mut self.leading else {
            return;
        };
        let wanted = leading.step(now_us, me, &self.peers, &settings, &t);
        // Orders to this host itself are taken in at once, which may answer and so on;
        // what the next step wants is left to it.
        for action in wanted {
            match action {
                Action::Send { to, message } => self.send_or_take(to, message, actions),
                other => actions.push(other),
            }
        }
    }
}
