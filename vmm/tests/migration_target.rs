//! The target of a migration against sources that die at any step. Real sockets, no KVM.

mod receiver;

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};

use receiver::{TOKEN, against, hello};
use storage_core::record::{Grant, LeaseRecord};
use vm_memory::{Bytes, GuestAddress};
use vmm::migration::wire::{self, Hello, Kind, Run, StateFrame};

type Act<'a> = &'a dyn Fn(&mut TcpStream, &mut TcpStream);

/// What a source does, one step after the other, until it dies after `steps` of them.
fn play(address: SocketAddr, steps: usize) {
    let mut control = TcpStream::connect(address).unwrap();
    wire::send(&mut control, Kind::Hello, 0, &hello()).unwrap();
    wire::receive(&mut control).unwrap();
    if steps == 0 {
        return;
    }
    let mut data = TcpStream::connect(address).unwrap();
    wire::send(&mut data, Kind::Join, 0, &TOKEN).unwrap();
    let run = Run {
        address: 0x3000,
        bytes: 4096,
    };
    let acts: [Act<'_>; 7] = [
        &|_, data| {
            let head = wire::page_table(Kind::Pages, 1, &[run]);
            data.write_all(&head).unwrap();
            data.write_all(&[0x5a; 2048]).unwrap();
        },
        &|_, data| data.write_all(&[0x5a; 2048]).unwrap(),
        &|_, data| data.write_all(&wire::control(Kind::End, 1, &[])).unwrap(),
        &|control, _| {
            wire::send(control, Kind::Round, 1, &1u32).unwrap();
            assert_eq!(wire::receive(control).unwrap().0.kind, Kind::RoundDone);
        },
        // What was left when the guest was stopped.
        &|control, _| {
            let run = Run {
                address: 0x5000,
                bytes: 4096,
            };
            let head = wire::page_table(Kind::Pages, 2, &[run]);
            control.write_all(&head).unwrap();
            control.write_all(&[0xa5; 4096]).unwrap();
        },
        &|control, _| {
            let state = StateFrame {
                machine: vec![],
                paused: false,
                memory_hash: None,
            };
            wire::send(control, Kind::State, 1, &state).unwrap();
            assert_eq!(wire::receive(control).unwrap().0.kind, Kind::Ready);
        },
        &|control, _| {
            wire::send(control, Kind::Commit, 0, &0u64).unwrap();
            assert_eq!(wire::receive(control).unwrap().0.kind, Kind::Running);
        },
    ];
    for act in acts.iter().take(steps - 1) {
        act(&mut control, &mut data);
    }
    let _ = control.shutdown(Shutdown::Both);
}

/// Steps of [`play`] up to and with the commit.
const COMMITTED: usize = 8;

#[test]
fn a_source_that_dies_before_the_commit_never_leaves_a_running_guest() {
    for steps in 0..COMMITTED {
        let (guest, ok) = against(move |address| play(address, steps));
        assert!(
            !guest.ran && !ok,
            "it runs although the source died at {steps}"
        );
    }
    let (guest, ok) = against(|address| play(address, COMMITTED));
    assert!(guest.ran && ok);
    let memory = guest.memory.unwrap();
    let word = |page: u64| memory.read_obj::<u64>(GuestAddress(page << 12)).unwrap();
    assert_eq!([word(2), word(3), word(4)], [0, 0x5a5a_5a5a_5a5a_5a5a, 0]);
    assert_eq!(word(5), 0xa5a5_a5a5_a5a5_a5a5);
}

#[test]
fn the_lease_says_that_a_silent_source_has_committed() {
    let from = LeaseRecord {
        cluster: [1; 16],
        subject: "web1".into(),
        epoch: 5,
        grant: Grant::Acquired,
        holder: None,
        fence: 0,
        nonce: [4; 16],
        note: String::new(),
    };
    let silent = move |address: SocketAddr| {
        let mut control = TcpStream::connect(address).unwrap();
        let hello = Hello {
            lease: Some(from),
            ..hello()
        };
        wire::send(&mut control, Kind::Hello, 0, &hello).unwrap();
        wire::receive(&mut control).unwrap();
        let mut data = TcpStream::connect(address).unwrap();
        wire::send(&mut data, Kind::Join, 0, &TOKEN).unwrap();
        let state = StateFrame {
            machine: vec![],
            paused: false,
            memory_hash: None,
        };
        wire::send(&mut control, Kind::State, 1, &state).unwrap();
        assert_eq!(wire::receive(&mut control).unwrap().0.kind, Kind::Ready);
        assert_eq!(wire::receive(&mut control).unwrap().0.kind, Kind::Running);
    };
    let (guest, ok) = against(silent);
    assert!(guest.ran && ok);
}
