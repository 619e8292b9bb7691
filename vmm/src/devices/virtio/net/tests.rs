use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::super::testing::{
    BUFFERS_AT, Guest, Piece, hostile_ring, plain_memory, readable, wait_for, writable,
};
use super::super::worker::{Serve, Stopping};
use super::announce::{ROUNDS, gratuitous_arp, reverse_arp};
use super::*;

const MAC: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
const ALL: u64 = u64::MAX;
const TX: usize = 1;

/// A device whose tap is one end of a datagram pair; the other end is ours.
fn guest(features: u64) -> (Guest, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    ours.set_nonblocking(true).unwrap();
    let tap = Tap::fake(OwnedFd::from(theirs));
    let mut guest = Guest::new(Box::new(Net::new("net0", MAC, tap)));
    guest.up(features);
    (guest, ours)
}

fn frame(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| at as u8).collect()
}

fn receive(from: &UnixDatagram) -> Vec<u8> {
    let mut packet = vec![0; 70_000];
    let mut bytes = None;
    wait_for(|| {
        bytes = from.recv(&mut packet).ok();
        bytes.is_some()
    });
    packet.truncate(bytes.unwrap());
    packet
}

#[test]
fn the_guest_sends_in_pieces() {
    let (mut guest, wire) = guest(ALL);
    assert_eq!(guest.config::<8>(0), [0x52, 0x54, 0, 1, 2, 3, 1, 0]);
    let packet = frame(12 + 100);
    guest
        .memory
        .write_slice(&packet[..50], GuestAddress(BUFFERS_AT))
        .unwrap();
    guest
        .memory
        .write_slice(&packet[50..], GuestAddress(BUFFERS_AT + 0x3000))
        .unwrap();
    let pieces = [readable(BUFFERS_AT, 50), readable(BUFFERS_AT + 0x3000, 62)];
    guest.request(TX, &pieces);
    assert_eq!(receive(&wire), packet);
    // Too short, too long, nowhere: dropped, and the queue lives on.
    guest.request(TX, &[readable(BUFFERS_AT, 12)]);
    guest.request(TX, &[readable(BUFFERS_AT, 80_000)]);
    guest.request(TX, &[readable(1 << 40, 100)]);
    guest.request(TX, &[writable(BUFFERS_AT, 100)]);
    guest.request(TX, &pieces);
    assert_eq!(receive(&wire), packet);
    assert!(wire.recv(&mut [0; 100]).is_err());
}

/// Offer one chain per piece on the receive queue.
fn offer(guest: &mut Guest, pieces: &[Piece]) {
    for (index, piece) in pieces.iter().enumerate() {
        guest.put_descriptor(0, index as u16, *piece, None);
        guest.offer(0, index as u16);
    }
}

#[test]
fn a_large_packet_is_merged_over_several_buffers() {
    let (mut guest, wire) = guest(ALL);
    guest.clean();
    let packet = frame(12 + 2500);
    wire.send(&packet).unwrap();
    let at = |index: u64| BUFFERS_AT + 0x1000 * index;
    // Two buffers are not enough: none is used.
    offer(&mut guest, &[writable(at(0), 1000), writable(at(1), 1000)]);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(guest.used(0), 0);
    guest.put_descriptor(0, 2, writable(at(2), 1000), None);
    guest.offer(0, 2);
    wait_for(|| guest.used(0) == 3);
    assert_eq!(
        [0, 1, 2].map(|n| guest.used_element(0, n)),
        [(0, 1000), (1, 1000), (2, 512)]
    );
    let mut got = vec![0; 1000];
    guest
        .memory
        .read_slice(&mut got, GuestAddress(at(0)))
        .unwrap();
    assert_eq!(got[10..12], [3, 0]);
    assert_eq!(got[12..], packet[12..1000]);
    guest
        .memory
        .read_slice(&mut got[..512], GuestAddress(at(2)))
        .unwrap();
    assert_eq!(got[..512], packet[2000..]);
    assert!(guest.is_dirty(at(0)) && guest.is_dirty(at(2)) && !guest.is_dirty(at(3)));
    wait_for(|| guest.router.fired(1) > 0);
}

#[test]
fn without_merging_a_packet_needs_one_buffer() {
    let (mut guest, wire) = guest(ALL & !(1 << VIRTIO_NET_F_MRG_RXBUF));
    wire.send(&frame(12 + 2500)).unwrap();
    wire.send(&frame(12 + 60)).unwrap();
    offer(
        &mut guest,
        &[
            writable(BUFFERS_AT, 1000),
            writable(BUFFERS_AT + 0x1000, 2000),
        ],
    );
    wait_for(|| guest.used(0) == 2);
    assert_eq!(guest.used_element(0, 0), (0, 0));
    assert_eq!(guest.used_element(0, 1), (1, 72));
    assert_eq!(
        guest
            .memory
            .read_obj::<u8>(GuestAddress(BUFFERS_AT + 0x1000 + 10))
            .unwrap(),
        1
    );
}

#[test]
fn useless_receive_buffers_come_back_empty() {
    let (mut guest, wire) = guest(ALL);
    wire.send(&frame(12 + 60)).unwrap();
    offer(
        &mut guest,
        &[
            readable(BUFFERS_AT, 100),
            writable(1 << 40, 100),
            writable(BUFFERS_AT, 0),
            writable(BUFFERS_AT, 100),
        ],
    );
    wait_for(|| guest.used(0) == 4);
    assert_eq!(guest.used_element(0, 2), (2, 0));
    assert_eq!(guest.used_element(0, 3), (3, 72));
}

/// The guest asks who has an address, as guests do before they speak to it.
fn asks(guest: &mut Guest, wire: &UnixDatagram, own: [u8; 4]) {
    let mut packet = gratuitous_arp(MAC, own);
    packet[12 + 38..12 + 42].copy_from_slice(&[10, 0, 0, 1]);
    guest
        .memory
        .write_slice(&packet, GuestAddress(BUFFERS_AT))
        .unwrap();
    let head = readable(BUFFERS_AT, 12);
    guest.request(
        TX,
        &[head, readable(BUFFERS_AT + 12, packet.len() as u32 - 12)],
    );
    assert_eq!(receive(wire), packet);
}

#[test]
fn an_arrival_is_announced_a_bounded_number_of_times() {
    let (mut guest, wire) = guest(ALL);
    let own = [10, 0, 0, 7];
    asks(&mut guest, &wire, own);
    guest.root.announce().unwrap();
    for _ in 0..ROUNDS {
        let packet = receive(&wire);
        assert_eq!(packet, reverse_arp(MAC));
        assert_eq!(
            packet[12..24],
            [255, 255, 255, 255, 255, 255, 0x52, 0x54, 0, 1, 2, 3]
        );
        let packet = receive(&wire);
        assert_eq!(packet, gratuitous_arp(MAC, own));
        // An ARP request for the address that its sender has, in Ethernet (RFC 5227 §3).
        let arp = [
            8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 1, 2, 3, 10, 0, 0, 7,
        ];
        assert_eq!(packet[24..44], arp);
        assert_eq!(packet[50..54], own);
    }
    guest.root.announce().unwrap();
    receive(&wire);
    guest.root.pause();
    while wire.recv(&mut [0; 100]).is_ok() {}
    std::thread::sleep(std::time::Duration::from_millis(60));
    assert!(
        wire.recv(&mut [0; 100]).is_err(),
        "a paused device is silent"
    );
    guest.root.resume().unwrap();
    let packet = frame(12 + 60);
    guest
        .memory
        .write_slice(&packet, GuestAddress(BUFFERS_AT))
        .unwrap();
    guest.request(TX, &[readable(BUFFERS_AT, packet.len() as u32)]);
    assert_eq!(receive(&wire), packet);
}

#[test]
fn addresses_travel_and_a_state_of_version_1_has_none() {
    let net = || {
        Net::new(
            "net0",
            MAC,
            Tap::fake(UnixDatagram::pair().unwrap().0.into()),
        )
    };
    let (source, mut target) = (net(), net());
    source.addresses.set(&[[10, 0, 0, 7]]);
    target.restore(&source.save()).unwrap();
    assert_eq!(target.addresses.all(), [[10, 0, 0, 7]]);
    target
        .restore(&codec::encode(&(1u16, MAC.0)).unwrap())
        .unwrap();
    assert_eq!(target.addresses.all(), [[0u8; 4]; 0]);
    for other in [
        codec::encode(&(3u16, MAC.0)),
        codec::encode(&(1u16, [9u8; 6])),
    ] {
        target.restore(&other.unwrap()).unwrap_err();
    }
}

proptest! {
    #[test]
    fn hostile_rings_are_survived(
        ring in hostile_ring(),
        mergeable in any::<bool>(),
        packets in prop::collection::vec(0usize..3000, 1..8),
    ) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        for bytes in packets {
            ours.send(&frame(bytes)).unwrap();
        }
        let tap = Tap::fake(OwnedFd::from(theirs));
        let memory = plain_memory();
        let mut queue = ring.install(&memory);
        let mut server = receive::Server::new(tap.try_clone().unwrap(), Arc::default(), mergeable);
        server.serve(&mut queue, &memory, &Stopping::never());
        let mut queue = ring.install(&memory);
        let speaker = transmit::Speaker {
            mac: MAC,
            addresses: Addresses::default(),
        };
        let mut server = transmit::Server::new(tap, Arc::default(), speaker);
        server.serve(&mut queue, &memory, &Stopping::never());
    }
}
