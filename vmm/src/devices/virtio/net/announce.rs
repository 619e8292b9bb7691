//! Telling the network where a guest now lives, in its name: reverse ARP requests (RFC 903), as
//! every switch learns from any frame's source address, and gratuitous ARP (RFC 5227 §3) for
//! whoever remembers more of its addresses than that.

use std::io;
use std::iter;
use std::os::fd::AsRawFd;
use std::time::Duration;

use tracing::warn;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::addresses::{Address, ETHERTYPE_ARP};
use crate::devices::virtio::tap::{HEADER_BYTES, Tap};
use crate::devices::virtio::worker::wait;
use crate::threads::{self, Task};
use vmm_core::mac::Mac;

/// Pauses after each announcement but the last. The first frames may meet a port that is
/// not forwarding yet.
const PAUSES_MS: [u64; 4] = [50, 150, 250, 350];
/// How often a guest is announced.
pub(super) const ROUNDS: usize = PAUSES_MS.len() + 1;

const ETHERNET_FRAME_BYTES: usize = 60;
const ETHERTYPE_RARP: u16 = 0x8035;
const ETHERTYPE_IPV4: u16 = 0x0800;
const HARDWARE_ETHERNET: u16 = 1;
const REQUEST: u16 = 1;
const REQUEST_REVERSE: u16 = 3;

/// Announces in the background; stops when dropped.
pub(super) struct Announcer {
    stop: EventFd,
    task: Option<Task<()>>,
}

impl Announcer {
    pub(super) fn start(name: &str, mac: Mac, addresses: &[Address], tap: Tap) -> io::Result<Self> {
        let gratuitous = addresses
            .iter()
            .map(|address| gratuitous_arp(mac, *address));
        let packets: Vec<_> = iter::once(reverse_arp(mac)).chain(gratuitous).collect();
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let stopped = stop.try_clone()?;
        let work = move || run(&packets, &tap, &stopped);
        let task = threads::spawn(format!("{name}-ann"), work)?;
        Ok(Self {
            stop,
            task: Some(task),
        })
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(task) = self.task.take() {
            // It has nothing to say.
            let _ = task.join();
        }
    }
}

fn run(packets: &[Vec<u8>], tap: &Tap, stop: &EventFd) {
    for round in 0..ROUNDS {
        for packet in packets {
            let piece = libc::iovec {
                iov_base: packet.as_ptr().cast_mut().cast(),
                iov_len: packet.len(),
            };
            // SAFETY: `piece` describes `packet`, which outlives the call.
            if let Err(error) = unsafe { tap.send(&[piece]) } {
                warn!(tap = tap.name(), %error, "cannot announce a guest's address");
            }
        }
        let Some(pause) = PAUSES_MS.get(round) else {
            return;
        };
        if wait(&[stop.as_raw_fd()], Some(Duration::from_millis(*pause))).is_err()
            || stop.read().is_ok()
        {
            return;
        }
    }
}

/// A reverse ARP request of `mac` for itself, behind an empty virtio header.
pub(super) fn reverse_arp(mac: Mac) -> Vec<u8> {
    packet(mac, ETHERTYPE_RARP, REQUEST_REVERSE, [0; 4], mac)
}

/// An ARP request of `mac` for the `address` that it has, behind an empty virtio header.
pub(super) fn gratuitous_arp(mac: Mac, address: Address) -> Vec<u8> {
    packet(mac, ETHERTYPE_ARP, REQUEST, address, Mac([0; 6]))
}

/// To everybody; sender and target have the same `address`.
fn packet(mac: Mac, ethertype: u16, operation: u16, address: Address, target: Mac) -> Vec<u8> {
    let mut packet = vec![0; HEADER_BYTES];
    packet.extend_from_slice(&[0xff; 6]);
    packet.extend_from_slice(&mac.0);
    packet.extend_from_slice(&ethertype.to_be_bytes());
    packet.extend_from_slice(&HARDWARE_ETHERNET.to_be_bytes());
    packet.extend_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
    packet.extend_from_slice(&[6, 4]);
    packet.extend_from_slice(&operation.to_be_bytes());
    for who in [mac, target] {
        packet.extend_from_slice(&who.0);
        packet.extend_from_slice(&address);
    }
    packet.resize(HEADER_BYTES + ETHERNET_FRAME_BYTES, 0);
    packet
}
