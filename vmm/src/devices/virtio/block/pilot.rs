//! The thread that serves a queue whose disk takes many requests at once ([`Flights`]).
//!
//! It takes all requests that the guest offers, hands the reads and writes among them to the kernel
//! in one call, and gives those that have ended back to the guest together, with one interrupt. What
//! cannot go that way (a flush, a discard) is put *aside* for helpers, the other threads of the crew.
//! A read or write that comes alone is carried out on the spot, which takes the fewest steps.
//!
//! ```text
//!            doorbell, or some have landed           took requests
//!   waiting ──────────────────────────────► looking ───────────────► departing,
//!      ▲                                     │    ▲                  carrying out
//!      └──────────── ring empty ─────────────┘    └──────────────────────┘
//! ```

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use shared_storage::image::{Flights, Landing};
use tracing::error;

use super::count;
use super::crew::{GATE_RETRY, Ring, Shared, serve, sleep};
use super::request::Transfer;
use crate::devices::virtio::chain::Buffers;
use crate::devices::virtio::worker::wait;
use crate::memory::GuestMemory;

/// Most reads and writes of a queue under way.
const MOST: u16 = 64;
/// After several came at once so many must come alone before one is carried out on the spot again.
const CROWD: u32 = 64;

/// Serve the queue as the first thread of its crew.
pub(super) fn lead(shared: &Arc<Shared>) {
    let Some(flights) = Flights::of(&shared.executor.disk, MOST) else {
        return serve(shared);
    };
    shared.flies.store(true, Ordering::Release);
    let mut pilot = Pilot {
        shared,
        memory: &shared.memory,
        flights,
        landed: Vec::new(),
        buffers: Buffers::default(),
        heads: Vec::new(),
        crowd: 0,
        gate_is_shut: false,
    };
    while !shared.stopping() {
        pilot.turn();
    }
    pilot.finish();
}

struct Pilot<'m> {
    shared: &'m Arc<Shared>,
    memory: &'m GuestMemory,
    flights: Flights<Transfer<'m>>,
    landed: Vec<(Transfer<'m>, Landing)>,
    buffers: Buffers<'m>,
    /// Taken from the ring just now.
    heads: Vec<u16>,
    /// How many have to come alone yet.
    crowd: u32,
    gate_is_shut: bool,
}

impl Pilot<'_> {
    fn turn(&mut self) {
        let orphan = self.look();
        if let Some(head) = orphan {
            assist(self.shared, &mut self.buffers, head);
        }
        match self.heads[..] {
            [] if orphan.is_some() => {}
            [] => self.wait(),
            [head] if self.flights.is_empty() && self.crowd == 0 => self.carry_out(head),
            _ => self.depart(),
        }
    }

    /// Give back what has landed and take what the guest offers. What was put aside and finds no
    /// helper is returned.
    fn look(&mut self) -> Option<u16> {
        let mut ring = self.shared.lock();
        self.give_back(&mut ring);
        self.heads.clear();
        // A shut gate is not asked again at once.
        let room = if self.gate_is_shut {
            0
        } else {
            self.flights.room()
        };
        let mut more = true;
        while more && !ring.broken && self.heads.len() < room {
            let taken = ring.take(self.memory);
            let taken = ring.unless_broken(taken).flatten();
            more = taken.is_some();
            self.heads.extend(taken);
        }
        if more {
            // What is done already should not wait for what takes long.
            let signalled = ring.signal(self.memory);
            ring.unless_broken(signalled);
        }
        if ring.has_no_helpers() {
            ring.aside.pop_front()
        } else {
            None
        }
    }

    fn give_back(&mut self, ring: &mut Ring) {
        let mut used = Vec::with_capacity(self.landed.len());
        for (transfer, landing) in self.landed.drain(..) {
            transfer.mark();
            let result = match landing {
                Landing::Done => Ok(()),
                Landing::Failed(error) => Err(error.into()),
                Landing::Again => {
                    Shared::put_aside(self.shared, ring, transfer.head);
                    continue;
                }
                Landing::Shut => {
                    self.gate_is_shut = true;
                    self.shared.keep(ring, transfer.head);
                    continue;
                }
            };
            self.shared.executor.count(&transfer);
            if let Some(written) = self.shared.executor.end(&transfer, result) {
                used.push((transfer.head, written));
            }
        }
        let published = ring.publish(self.memory, &used);
        ring.unless_broken(published);
    }

    /// The only request there is.
    fn carry_out(&mut self, head: u16) {
        self.crowd = 0;
        let (executor, table) = (&self.shared.executor, self.shared.table);
        let transfer = executor.transfer(self.memory, table, head, &mut self.buffers);
        let done = transfer
            .as_ref()
            .map(|transfer| executor.carry_out(transfer));
        let mut ring = self.shared.lock();
        match done {
            None => Shared::put_aside(self.shared, &mut ring, head),
            Some(None) => {
                self.gate_is_shut = true;
                self.shared.keep(&mut ring, head);
            }
            Some(Some(written)) => {
                let published = ring.publish(self.memory, &[(head, written)]);
                ring.unless_broken(published);
            }
        }
        // Did others come meanwhile?
        if ring.offers_more(self.memory) {
            self.crowd = CROWD;
        }
    }

    /// Hand what was taken to the kernel.
    fn depart(&mut self) {
        let crowded = self.heads.len() > 1 || !self.flights.is_empty();
        self.crowd = if crowded {
            CROWD
        } else {
            self.crowd.saturating_sub(1)
        };
        let mut aside = Vec::new();
        for head in self.heads.drain(..) {
            let (executor, table) = (&self.shared.executor, self.shared.table);
            let transfer = executor.transfer(self.memory, table, head, &mut self.buffers);
            let boarded = transfer.is_some_and(|transfer| {
                let (write, offset) = (transfer.write, transfer.offset);
                // SAFETY: guest memory is mapped for as long as `shared` lives, which is longer than
                // the flights; nobody holds references into it.
                let boarded = unsafe {
                    self.flights
                        .board(transfer, write, offset, |transfer| &transfer.slices)
                };
                boarded.is_ok()
            });
            if !boarded {
                aside.push(head);
            }
        }
        self.flights.depart(&mut self.landed);
        if !aside.is_empty() {
            let mut ring = self.shared.lock();
            for head in aside {
                Shared::put_aside(self.shared, &mut ring, head);
            }
        }
    }

    fn wait(&mut self) {
        let (stop, doorbell) = (
            self.shared.stop.as_raw_fd(),
            self.shared.doorbell.as_raw_fd(),
        );
        let bell = self.flights.bell().as_raw_fd();
        let retry = std::mem::take(&mut self.gate_is_shut).then_some(GATE_RETRY);
        let mut descriptors = vec![stop, bell];
        if retry.is_none() && self.flights.room() > 0 && !self.shared.lock().broken {
            descriptors.push(doorbell);
        }
        let ready = wait(&descriptors, retry).unwrap_or_else(|error| {
            error!(crew = self.shared.name, %error, "an I/O thread cannot wait; its queue stops");
            self.shared.lock().broken = true;
            Vec::new()
        });
        if ready.contains(&bell) {
            self.flights.heard();
            self.flights.arrivals(false, &mut self.landed);
        }
        if ready.contains(&doorbell) {
            self.shared.answer_doorbell();
        }
    }

    /// The queue is to be given back: nothing may be under way.
    fn finish(&mut self) {
        self.flights.arrivals(true, &mut self.landed);
        let mut ring = self.shared.lock();
        self.give_back(&mut ring);
        let signalled = ring.signal(self.memory);
        ring.unless_broken(signalled);
    }
}

/// Serve what is put aside, as another thread of the crew.
pub(super) fn help(shared: &Arc<Shared>) {
    let mut buffers = Buffers::default();
    let mut ring = shared.lock();
    while !shared.stopping() {
        if let Some(head) = ring.aside.pop_front() {
            drop(ring);
            assist(shared, &mut buffers, head);
            ring = shared.lock();
        } else {
            ring = sleep(shared, ring);
        }
    }
}

fn assist<'m>(shared: &'m Shared, buffers: &mut Buffers<'m>, head: u16) {
    let memory = &*shared.memory;
    let done = shared.executor.run(memory, shared.table, head, buffers);
    let mut ring = shared.lock();
    if let Some(written) = done {
        let given_back = ring.publish(memory, &[(head, written)]);
        let given_back = given_back.and_then(|()| ring.signal(memory));
        ring.unless_broken(given_back);
    } else {
        count(&shared.executor.counters.gate_waits, 1);
        ring.aside.push_back(head);
        drop(ring);
        let _ = wait(&[shared.stop.as_raw_fd()], Some(GATE_RETRY));
    }
}
