//! Telling the switches where a guest now lives: reverse ARP requests in its name, as every
//! switch learns from any frame's source address (RFC 903).

use std::io;
use std::os::fd::AsRawFd;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tracing::warn;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::virtio::tap::{HEADER_BYTES, Tap};
use crate::devices::virtio::worker::wait;
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
const REQUEST_REVERSE: u16 = 3;

/// Announces in the background; stops when dropped.
pub(super) struct Announcer {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Announcer {
    pub(super) fn start(name: &str, mac: Mac, tap: Tap) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let stopped = stop.try_clone()?;
        let thread = thread::Builder::new()
            .name(format!("{name}-ann"))
            .spawn(move || run(mac, &tap, &stopped))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(mac: Mac, tap: &Tap, stop: &EventFd) {
    let packet = reverse_arp(mac);
    let piece = libc::iovec {
        iov_base: packet.as_ptr().cast_mut().cast(),
        iov_len: packet.len(),
    };
    for round in 0..ROUNDS {
        // SAFETY: `piece` describes `packet`, which outlives the loop.
        if let Err(error) = unsafe { tap.send(&[piece]) } {
            warn!(tap = tap.name(), %mac, %error, "cannot announce a guest's address");
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
    let mut packet = vec![0; HEADER_BYTES];
    packet.extend_from_slice(&[0xff; 6]);
    packet.extend_from_slice(&mac.0);
    packet.extend_from_slice(&ETHERTYPE_RARP.to_be_bytes());
    packet.extend_from_slice(&HARDWARE_ETHERNET.to_be_bytes());
    packet.extend_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
    packet.extend_from_slice(&[6, 4]);
    packet.extend_from_slice(&REQUEST_REVERSE.to_be_bytes());
    for _ in 0..2 {
        packet.extend_from_slice(&mac.0);
        packet.extend_from_slice(&[0; 4]);
    }
    packet.resize(HEADER_BYTES + ETHERNET_FRAME_BYTES, 0);
    packet
}
