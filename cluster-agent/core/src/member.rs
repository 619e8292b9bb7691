//! What every host does: report its guests, start what a leader orders.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::demand::Smoothing;
use crate::event::{Action, StopHow};
use crate::messages::{
    GuestState, Incarnation, LocalGuest, MoveAnswer, MoveOrder, MoveOutcome, ReleaseOrder, Report,
    StartAnswer, StartOrder, StartOutcome,
};
use crate::migration_cost::Link;
use crate::model::{Desired, GuestId, HostId, Resources};
use crate::moves::{Ended, Moves, NotBegun};
use crate::observation::{Counted, HostCounted};
use crate::own_needs::{OwnNeeds, for_guests};
use crate::settings::{HostEntry, Inventory};

/// A report is repeated so often even if nothing changed: any may be lost.
const REPORT_EVERY_US: u64 = 1_000_000;

/// A start under way here.
#[derive(Debug, Clone)]
struct Start {
    from_epoch: u64,
    ordered_by: HostId,
}

/// The guests of this host.
#[derive(Debug, Clone, Default)]
pub struct Member {
    locals: BTreeMap<GuestId, LocalGuest>,
    counted: BTreeMap<GuestId, Counted>,
    host_counted: Option<HostCounted>,
    own_needs: OwnNeeds,
    link: Option<Link>,
    starts: BTreeMap<GuestId, Start>,
    stopping: BTreeSet<GuestId>,
    /// Revision of the spec by which guests were last ordered to start. What this host has read
    /// may be older than that: the operator's word reaches the leader first.
    wanted_by: BTreeMap<GuestId, u64>,
    moves: Moves,
    leader_epoch: u64,
    next_report_us: u64,
}

impl Member {
    /// A guest here changed.
    pub fn local(&mut self, guest: GuestId, now: Option<LocalGuest>) {
        let Some(now) = now else {
            self.stopping.remove(&guest);
            self.locals.remove(&guest);
            self.counted.remove(&guest);
            self.report_soon();
            return;
        };
        let is = (now.epoch, now.state);
        let was = self.locals.insert(guest, now);
        if was.is_none_or(|was| (was.epoch, was.state) != is) {
            self.report_soon();
        }
    }

    /// The VMM of a guest here has counted so much; it goes with the next report.
    pub fn counted(&mut self, guest: GuestId, counted: Counted) {
        if self.locals.contains_key(&guest) {
            self.counted.insert(guest, counted);
        }
    }

    /// The kernel of this host has counted so much; it goes with the next report.
    pub fn host_counted(&mut self, counted: HostCounted, by: &Smoothing) {
        self.own_needs.count(counted, &self.counted, by);
        self.host_counted = Some(counted);
    }

    /// There is (or was) a leader of this epoch: older ones are not obeyed.
    pub fn know_leader(&mut self, epoch: u64) {
        self.leader_epoch = self.leader_epoch.max(epoch);
    }

    /// The next report goes out at once.
    pub fn report_soon(&mut self) {
        self.next_report_us = 0;
    }

    /// What to report, if it is time.
    pub fn report(&mut self, now_us: u64, incarnation: Incarnation) -> Option<Report> {
        if now_us < self.next_report_us {
            return None;
        }
        self.next_report_us = now_us + REPORT_EVERY_US;
        Some(Report {
            incarnation,
            guests: self.locals.clone(),
            counted: self.counted.clone(),
            host_counted: self.host_counted,
            own_needs: self.own_needs.told(),
            link: self.link,
        })
    }

    /// A leader orders a start: begin it, or refuse.
    pub fn ordered(
        &mut self,
        me: (&HostId, bool),
        inventory: &Inventory,
        from: &HostId,
        order: StartOrder,
    ) -> Result<Option<Action>, StartAnswer> {
        if self
            .starts
            .get(&order.guest)
            .is_some_and(|start| start.from_epoch == order.from_epoch)
        {
            // Asked again because the answer is late: it goes to whoever asked last.
            let ordered_by = from.clone();
            self.starts
                .entry(order.guest)
                .and_modify(|start| start.ordered_by = ordered_by);
            return Ok(None);
        }
        if let Err(why) = self.check(me, inventory, &order) {
            let outcome = StartOutcome::Refused { why };
            return Err(StartAnswer {
                guest: order.guest,
                from_epoch: order.from_epoch,
                outcome,
            });
        }
        self.know_leader(order.leader_epoch);
        let start = Start {
            from_epoch: order.from_epoch,
            ordered_by: from.clone(),
        };
        self.starts.insert(order.guest.clone(), start);
        self.wanted_by
            .insert(order.guest.clone(), order.spec_revision);
        Ok(Some(Action::Start {
            guest: order.guest,
            from_epoch: order.from_epoch,
            because: order.because,
        }))
    }

    fn check(
        &self,
        me: (&HostId, bool),
        inventory: &Inventory,
        order: &StartOrder,
    ) -> Result<(), String> {
        let (me, may_act) = me;
        if order.leader_epoch < self.leader_epoch {
            return Err(format!(
                "the order is of leader epoch {}, {} is known",
                order.leader_epoch, self.leader_epoch
            ));
        }
        if !may_act {
            return Err("its own datastore heartbeat is overdue".to_string());
        }
        if self.locals.contains_key(&order.guest) || self.starts.contains_key(&order.guest) {
            return Err("it is already here".to_string());
        }
        self.has_room(me, inventory, &order.guest)
    }

    /// May this guest come here by live migration?
    pub fn may_arrive(
        &self,
        me: (&HostId, bool),
        inventory: &Inventory,
        guest: &GuestId,
    ) -> Result<(), String> {
        let (me, may_act) = me;
        if !may_act {
            return Err(format!("{me}'s own datastore heartbeat is overdue"));
        }
        if self.locals.contains_key(guest) || self.starts.contains_key(guest) {
            return Err(format!("{guest} is on {me} already"));
        }
        self.has_room(me, inventory, guest)
    }

    fn has_room(&self, me: &HostId, inventory: &Inventory, guest: &GuestId) -> Result<(), String> {
        let Some(host) = inventory.hosts.get(me) else {
            return Err(format!("{me} is not in the inventory"));
        };
        if host.maintenance || host.leaving {
            return Err(format!("{me} is being emptied"));
        }
        let Some(guest) = inventory.guests.get(guest) else {
            return Err("this host has not read its spec yet".to_string());
        };
        let free = self.capacity(host).minus(self.reserved(inventory));
        if !guest.reservation.fits(free) {
            return Err(format!("it needs {}, {free} are free", guest.reservation));
        }
        Ok(())
    }

    /// What this host has for guests.
    fn capacity(&self, host: &HostEntry) -> Resources {
        match (self.host_counted, self.own_needs.told()) {
            (Some(counted), Some(own)) => for_guests(host.capacity, counted.machine, own),
            _ => host.capacity,
        }
    }

    /// A leader orders a migration: begin it, or refuse.
    pub fn ordered_move(
        &mut self,
        from: &HostId,
        order: &MoveOrder,
    ) -> Result<Option<Action>, MoveAnswer> {
        let refused = |order: &MoveOrder, why| MoveAnswer {
            guest: order.guest.clone(),
            to: order.to.clone(),
            number: order.number,
            outcome: MoveOutcome::Failed { why },
        };
        if order.leader_epoch < self.leader_epoch {
            let why = format!(
                "the order is of leader epoch {}, {} is known",
                order.leader_epoch, self.leader_epoch
            );
            return Err(refused(order, why));
        }
        self.know_leader(order.leader_epoch);
        let runs = |local: &LocalGuest| matches!(local.state, GuestState::Running { .. });
        let runs_here = self.locals.get(&order.guest).is_some_and(runs);
        let stops = self.stopping.contains(&order.guest);
        match self.moves.ordered(from, order.clone()) {
            Err(NotBegun::Answered(answer)) => Err(answer),
            Err(NotBegun::Refused(why)) => Err(refused(order, why)),
            Ok(Some(_)) if !runs_here || stops => {
                self.moves.forget(&order.guest);
                Err(refused(order, "it does not run here".to_string()))
            }
            Ok(begun) => Ok(begun),
        }
    }

    /// A leader wants a guest let go that this host seems not to run.
    pub fn ordered_release(&mut self, order: ReleaseOrder) -> Option<Action> {
        let here = self.locals.contains_key(&order.guest) || self.starts.contains_key(&order.guest);
        if here || order.leader_epoch < self.leader_epoch {
            self.report_soon();
            return None;
        }
        Some(Action::Release {
            guest: order.guest,
            because: order.because,
        })
    }

    /// Is no guest here, and none on its way?
    pub fn is_empty(&self) -> bool {
        self.locals.is_empty() && self.starts.is_empty()
    }

    /// A migration begun here has ended.
    pub fn migrated(&mut self, guest: &GuestId, outcome: MoveOutcome) -> Option<Ended> {
        self.report_soon();
        self.link = Link::after(self.link, &outcome);
        self.moves.ended(guest, outcome)
    }

    fn reserved(&self, inventory: &Inventory) -> Resources {
        let names: BTreeSet<&GuestId> = self.locals.keys().chain(self.starts.keys()).collect();
        names
            .into_iter()
            .filter_map(|name| inventory.guests.get(name))
            .fold(Resources::default(), |sum, guest| {
                sum.plus(guest.reservation)
            })
    }

    /// A start begun here ended: the answer and to whom it goes.
    pub fn start_done(
        &mut self,
        guest: &GuestId,
        outcome: StartOutcome,
    ) -> Option<(HostId, StartAnswer)> {
        let start = self.starts.remove(guest)?;
        self.report_soon();
        let answer = StartAnswer {
            guest: guest.clone(),
            from_epoch: start.from_epoch,
            outcome,
        };
        Some((start.ordered_by, answer))
    }

    /// Stops guests that shall not run: the operator's word may have come while nobody could
    /// be told.
    pub fn stop_unwanted(&mut self, inventory: &Inventory) -> Vec<Action> {
        self.wanted_by
            .retain(|guest, _| inventory.guests.contains_key(guest));
        let (stopping, wanted) = (&self.stopping, &self.wanted_by);
        let unwanted = |(name, local): &(&GuestId, &LocalGuest)| {
            local.state != GuestState::Arriving
                && !stopping.contains(*name)
                && inventory.guests.get(*name).is_some_and(|read| {
                    let is_news = wanted.get(*name).is_none_or(|by| read.revision > *by);
                    read.desired == Desired::Stopped && is_news
                })
        };
        let unwanted = self
            .locals
            .iter()
            .filter(unwanted)
            .map(|(name, _)| name.clone());
        let unwanted: Vec<GuestId> = unwanted.collect();
        self.stopping.extend(unwanted.iter().cloned());
        let stop = |guest| Action::Stop {
            guest,
            how: StopHow::ShutDown,
            because: "it shall not run".into(),
        };
        unwanted.into_iter().map(stop).collect()
    }

    /// Stops every guest here that is not being stopped already.
    pub fn stop_all(&mut self, how: StopHow, because: &str) -> Vec<Action> {
        let mut actions = Vec::new();
        for guest in self.locals.keys() {
            if self.stopping.insert(guest.clone()) {
                actions.push(Action::Stop {
                    guest: guest.clone(),
                    how,
                    because: because.into(),
                });
            }
        }
        actions
    }
}
