//! Network device (virtio 1.2 §5.1) on a tap: one receive and one transmit queue, a thread
//! each, checksums and TCP segmentation passed through to the host's kernel.

mod addresses;
mod announce;
mod receive;
mod transmit;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use vmm_core::mac::Mac;

use self::addresses::{Address, Addresses};
use self::announce::Announcer;
use super::tap::{Offloads, Tap};
use super::worker::Worker;
use super::{Activation, ActiveQueue, VirtioDevice, count, offer};
use crate::codec;

const RECEIVE: u16 = 0;
const QUEUE_SIZES: [u16; 2] = [256, 256];
/// Version 1 had no addresses.
const STATE_VERSION: u16 = 2;

/// What a network device has done so far. Directions as the guest sees them.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// Frames given to the guest.
    pub received: AtomicU64,
    /// Bytes given to the guest.
    pub received_bytes: AtomicU64,
    /// Frames sent by the guest.
    pub sent: AtomicU64,
    /// Bytes sent by the guest.
    pub sent_bytes: AtomicU64,
    /// Frames dropped in either direction.
    pub dropped: AtomicU64,
}

/// A virtio network device.
pub struct Net {
    name: String,
    mac: Mac,
    tap: Tap,
    counters: Arc<NetCounters>,
    addresses: Addresses,
    workers: Vec<Worker>,
    announcer: Option<Announcer>,
}

#[derive(Serialize, Deserialize)]
struct State {
    version: u16,
    mac: [u8; 6],
    addresses: Vec<Address>,
}

impl State {
    fn decode(bytes: &[u8]) -> io::Result<Self> {
        codec::decode(bytes).or_else(|error| match codec::decode::<(u16, [u8; 6])>(bytes) {
            Ok((1, mac)) => Ok(Self {
                version: STATE_VERSION,
                mac,
                addresses: Vec::new(),
            }),
            _ => Err(error),
        })
    }
}

impl Net {
    /// A device with address `mac` on `tap`. `name` names its threads.
    pub fn new(name: &str, mac: Mac, tap: Tap) -> Self {
        Self {
            name: name.to_owned(),
            mac,
            tap,
            counters: Arc::default(),
            addresses: Addresses::default(),
            workers: Vec::new(),
            announcer: None,
        }
    }

    /// The counters, which stay valid as long as anyone holds them.
    pub fn counters(&self) -> Arc<NetCounters> {
        self.counters.clone()
    }

    fn spawn(&mut self, queue: ActiveQueue, activation: &Shared) -> io::Result<()> {
        let (tap, counters) = (self.tap.try_clone()?, self.counters.clone());
        let memory = activation.memory.clone();
        let worker = if queue.index == RECEIVE {
            let name = format!("{}-rx", self.name);
            let server = receive::Server::new(tap, counters, activation.mergeable);
            Worker::spawn(name, queue, memory, server)?
        } else {
            let name = format!("{}-tx", self.name);
            let speaker = transmit::Speaker {
                mac: self.mac,
                addresses: self.addresses.clone(),
            };
            let server = transmit::Server::new(tap, counters, speaker);
            Worker::spawn(name, queue, memory, server)?
        };
        self.workers.push(worker);
        Ok(())
    }
}

/// The parts of an activation that both queues need.
struct Shared {
    memory: Arc<crate::memory::GuestMemory>,
    mergeable: bool,
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        offer(&[
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
        ])
    }

    fn config(&self) -> Vec<u8> {
        let status = (VIRTIO_NET_S_LINK_UP as u16).to_le_bytes();
        [&self.mac.0[..], &status].concat()
    }

    fn start(&mut self, activation: Activation) -> io::Result<()> {
        let has = |bit: u32| activation.features & 1 << bit != 0;
        self.tap.set_offloads(Offloads {
            checksum: has(VIRTIO_NET_F_GUEST_CSUM),
            tso4: has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: has(VIRTIO_NET_F_GUEST_TSO6),
            ecn: has(VIRTIO_NET_F_GUEST_ECN),
        })?;
        let shared = Shared {
            memory: activation.memory.clone(),
            mergeable: has(VIRTIO_NET_F_MRG_RXBUF),
        };
        for queue in activation.queues {
            if let Err(error) = self.spawn(queue, &shared) {
                self.stop();
                return Err(error);
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        // Whatever boots now may have others.
        self.addresses.set(&[]);
    }

    fn ask_to_stop(&self) {
        self.workers.iter().for_each(Worker::ask_to_stop);
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        self.announcer = None;
        self.ask_to_stop();
        self.workers.drain(..).filter_map(Worker::stop).collect()
    }

    fn save(&self) -> Vec<u8> {
        codec::encode(&State {
            version: STATE_VERSION,
            mac: self.mac.0,
            addresses: self.addresses.all(),
        })
        .expect("a few bytes are below the codec limit")
    }

    fn restore(&mut self, state: &[u8]) -> io::Result<()> {
        let state = State::decode(state)?;
        codec::check_version("network card", state.version, STATE_VERSION)?;
        if state.mac == self.mac.0 {
            self.addresses.set(&state.addresses);
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "the saved network card has the MAC address {}, this one {}",
                Mac(state.mac),
                self.mac
            ),
        ))
    }

    fn announce(&mut self) -> io::Result<()> {
        self.announcer = Some(Announcer::start(
            &self.name,
            self.mac,
            &self.addresses.all(),
            self.tap.try_clone()?,
        )?);
        Ok(())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests;
