//! Orders that are ahead of what this host has read: the leader reads the datastore, too, and may
//! be first to see a new guest.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::Brain;
use crate::event::Action;
use crate::messages::{Message, StartOrder};
use crate::model::{GuestId, HostId};

/// So long an order waits for the spec that it speaks of. Specs are read once a second.
const SPEC_WAIT_US: u64 = 3_000_000;

/// Orders to start guests whose specs this host has not read yet; the latest for each.
#[derive(Debug, Clone, Default)]
pub(super) struct EarlyOrders {
    waiting: BTreeMap<GuestId, Early>,
}

#[derive(Debug, Clone)]
struct Early {
    from: HostId,
    order: StartOrder,
    until_us: u64,
}

impl EarlyOrders {
    /// Those that wait no more: their spec has been read, or has not come.
    fn ripe(&mut self, now_us: u64, is_read: impl Fn(&GuestId) -> bool) -> Vec<Early> {
        let ripe = |guest: &GuestId, early: &mut Early| is_read(guest) || now_us >= early.until_us;
        self.waiting
            .extract_if(.., ripe)
            .map(|(_, early)| early)
            .collect()
    }
}

impl Brain {
    /// A leader orders a start: now, or once the spec has been read.
    pub(super) fn take_start(
        &mut self,
        from: &HostId,
        order: StartOrder,
        actions: &mut Vec<Action>,
    ) {
        if self.has_read(&order.guest) {
            self.obey_start(from, order, actions);
        } else {
            let early = Early {
                from: from.clone(),
                until_us: self.now_us + SPEC_WAIT_US,
                order,
            };
            let guest = early.order.guest.clone();
            self.early.waiting.insert(guest, early);
        }
    }

    /// Obeys the orders whose specs have come, and refuses those that have waited in vain.
    pub(super) fn take_early_orders(&mut self, actions: &mut Vec<Action>) {
        let mut early = core::mem::take(&mut self.early);
        for ripe in early.ripe(self.now_us, |guest| self.has_read(guest)) {
            self.obey_start(&ripe.from, ripe.order, actions);
        }
        self.early = early;
    }

    fn has_read(&self, guest: &GuestId) -> bool {
        let inventory = self.inventory.as_ref();
        inventory.is_some_and(|inventory| inventory.guests.contains_key(guest))
    }

    fn obey_start(&mut self, from: &HostId, order: StartOrder, actions: &mut Vec<Action>) {
        let Some(inventory) = &self.inventory else {
            return;
        };
        let me = (&self.me, self.hold.is_live(self.now_us));
        match self.member.ordered(me, inventory, from, order) {
            Ok(start) => actions.extend(start),
            Err(refusal) => self.send_or_take(from.clone(), Message::Started(refusal), actions),
        }
    }
}
