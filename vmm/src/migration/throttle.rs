//! Holds processors back that dirty memory faster than it can be sent: each rests for its
//! share of every period, the others run as ever.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmm_core::lifecycle::State;

use crate::guest::Guest;
use crate::machine::Inspect;
use crate::vcpu::Vcpu;
use crate::vcpu::faults::Faults;

/// Long against the cost of interrupting a processor, short for those who wait for the guest.
const PERIOD: Duration = Duration::from_millis(10);

/// A processor that has not noticed by then that it is interrupted is not waited for.
const STOP_MAX: Duration = Duration::from_millis(20);
const STOP_POLL: Duration = Duration::from_micros(20);

/// The processors of one guest; dropping this lets them run freely.
pub struct Throttle {
    guest: Arc<Guest>,
    faults: Vec<Option<Faults>>,
    at_work: Option<(Sender<Vec<u8>>, JoinHandle<()>)>,
}

impl Throttle {
    /// Nobody is held back.
    pub fn new(guest: Arc<Guest>) -> Self {
        let count = |machine: &dyn Inspect| machine.vcpus().iter().map(Vcpu::faults).collect();
        // A guest that has ended has no processors.
        let faults = guest.inspect(count).unwrap_or_default();
        Self {
            guest,
            faults,
            at_work: None,
        }
    }

    /// How often each processor has waited for a page so far.
    pub fn faults(&self) -> Vec<u64> {
        let count = |faults: &Option<Faults>| faults.as_ref().map_or(0, Faults::count);
        self.faults.iter().map(count).collect()
    }

    /// Hold each processor back by so many per cent of its time, from now on.
    pub fn set(&mut self, percents: &[u8]) {
        if self.at_work.is_none() && percents.iter().any(|percent| *percent > 0) {
            let (orders, inbox) = channel();
            let guest = self.guest.clone();
            let thread = thread::Builder::new().name("throttle".into());
            // Without the thread the guest stays as fast as it was, and the policy gives up.
            if let Ok(thread) = thread.spawn(move || serve(&guest, &inbox)) {
                self.at_work = Some((orders, thread));
            }
        }
        if let Some((orders, _)) = &self.at_work {
            // The thread listens until the sender goes.
            let _ = orders.send(percents.to_vec());
        }
    }

    /// How long the processors would take to stop, as far as can be told without stopping them:
    /// nothing while they are held back, or stand still.
    pub fn stop_takes(&self) -> Option<Duration> {
        if self.at_work.is_some() || self.guest.state() == Some(State::Paused) {
            return None;
        }
        let interrupt = |machine: &dyn Inspect| {
            let began = Instant::now();
            machine.vcpus().iter().for_each(Vcpu::interrupt);
            while !machine.vcpus().iter().all(Vcpu::was_interrupted) {
                if began.elapsed() > STOP_MAX {
                    break;
                }
                thread::sleep(STOP_POLL);
            }
            began.elapsed()
        };
        self.guest.inspect(interrupt).ok()
    }

    /// Let all run freely.
    pub fn release(&mut self) {
        if let Some((orders, thread)) = self.at_work.take() {
            drop(orders);
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.release();
    }
}

fn serve(guest: &Guest, inbox: &Receiver<Vec<u8>>) {
    let mut percents = Vec::new();
    loop {
        match inbox.recv_timeout(PERIOD) {
            Ok(new) => percents = new,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let rest = |machine: &dyn Inspect| {
            for (vcpu, percent) in machine.vcpus().iter().zip(&percents) {
                vcpu.rest(PERIOD * u32::from(*percent) / 100);
            }
        };
        if guest.inspect(rest).is_err() {
            return;
        }
    }
}
