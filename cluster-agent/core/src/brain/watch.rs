//! Beats for the others, and what is seen and heard of them.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Brain, FULL_MESH_HOSTS, NEIGHBOURS, record};
use crate::event::{Action, Level, StopHow};
use crate::health::{Change, HostState, Wanted};
use crate::messages::{Beat, HostNote, Message};
use crate::model::HostId;
use crate::settings::IsolationResponse;

impl Brain {
    pub(super) fn beat(&mut self, actions: &mut Vec<Action>) {
        if self.now_us < self.next_beat_us {
            return;
        }
        self.next_beat_us = self.now_us + self.waits().beat_us;
        self.sequence += 1;
        let beat = Beat {
            incarnation: self.incarnation,
            sequence: self.sequence,
            leader_epoch: self.lead_seen.epoch,
        };
        for to in self.circle() {
            actions.push(Action::Send {
                to,
                message: Message::Beat(beat.clone()),
            });
        }
    }

    /// Those this host beats to and expects beats from.
    pub(super) fn circle(&self) -> Vec<HostId> {
        let all: Vec<&HostId> = self.peers.keys().collect();
        if all.len() < FULL_MESH_HOSTS || self.leading.is_some() {
            return all.into_iter().cloned().collect();
        }
        let after = all.partition_point(|name| **name < self.me);
        let mut circle: Vec<HostId> = (0..NEIGHBOURS)
            .flat_map(|step| [after + step, after + all.len() - 1 - step])
            .map(|index| all[index % all.len()].clone())
            .collect();
        circle.extend(self.leader().filter(|leader| **leader != self.me).cloned());
        circle.sort();
        circle.dedup();
        circle
    }

    pub(super) fn judge_peers(&mut self, actions: &mut Vec<Action>) {
        let (now_us, t, circle) = (self.now_us, self.waits(), self.circle());
        let Some(inventory) = &self.inventory else {
            return;
        };
        let mut heard = 0_u16;
        for (name, peer) in &mut self.peers {
            let expected = circle.binary_search(name).is_ok();
            peer.expect(now_us, expected);
            heard += u16::from(expected && peer.is_heard(now_us, &t));
            let entry = inventory.hosts.get(name);
            let wanted = match entry {
                Some(entry) if entry.leaving => Wanted::Leaving,
                Some(entry) if entry.maintenance => Wanted::Maintenance,
                _ => Wanted::Service,
            };
            if let Some(change) = peer.judge(now_us, wanted, &t)
                && self.leading.is_some()
            {
                record(actions, level_of(&change), name, words_of(name, &change));
            }
        }
        let note = HostNote {
            hears: heard,
            of: circle.len() as u16,
        };
        if note != self.note {
            self.note = note;
            actions.push(Action::Publish(note));
        }
    }

    /// Cut off: hears nobody although others live; responds once somebody else leads and
    /// is heard by others, so that a dead switch does not stop the whole cluster.
    pub(super) fn judge_self(&mut self, actions: &mut Vec<Action>) {
        let (now_us, t) = (self.now_us, self.waits());
        let alone = self.note.of > 0
            && self.peers.values().all(|peer| peer.is_cut_off(now_us, &t))
            && self.peers.values().any(|peer| peer.beats(now_us, &t));
        if alone != self.cut_off {
            self.cut_off = alone;
            let text = if alone {
                format!(
                    "hears none of {} peers, though some beat on the datastore",
                    self.note.of
                )
            } else {
                "is no longer cut off from its peers".to_string()
            };
            record(actions, Level::Warning, &self.me, text);
        }
        let response = self.settings().isolation_response;
        if !alone || response == IsolationResponse::Leave || self.leading.is_some() {
            return;
        }
        let leader = self.leader().and_then(|leader| self.peers.get(leader));
        if !leader.is_some_and(|leader| leader.beats(now_us, &t) && leader.note().hears > 0) {
            return;
        }
        let how = match response {
            IsolationResponse::PowerOff => StopHow::PowerOff,
            _ => StopHow::ShutDown,
        };
        actions.extend(
            self.member
                .stop_all(how, &format!("{} is isolated", self.me)),
        );
    }
}

fn level_of(change: &Change) -> Level {
    match change.is {
        HostState::Dead | HostState::StorageLost => Level::Error,
        HostState::Suspect | HostState::Isolated => Level::Warning,
        _ => Level::Info,
    }
}

fn words_of(name: &str, change: &Change) -> String {
    format!(
        "{name} is {} (was {}): {}",
        change.is.word(),
        change.was.word(),
        change.because
    )
}
