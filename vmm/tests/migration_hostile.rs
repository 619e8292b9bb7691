//! The target of a migration against strangers, and against sources that are none: they are refused,
//! cost it little time and memory, and do not keep the next one away.

mod receiver;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use receiver::{TOKEN, against, against_under, hello};
use shared_storage::trust::Authority;
use vmm::migration::lifeline::Lifeline;
use vmm::migration::stream::Security;
use vmm::migration::target::Received;
use vmm::migration::wire::{self, Hello, Kind, Run};

/// So much of what a source says is left to it, far above what fits all buffers on the way.
const FLOOD_BYTES: usize = 64 << 20;
/// A writer that gets rid of nothing for so long is not read from.
const STUCK: Duration = Duration::from_secs(1);
/// Pauses of one that says little at a time, each far below the target's patience ...
const DRIP: Duration = Duration::from_millis(30);
/// ... and so often that they are far above it together.
const DRIPS: usize = 200;

/// A source that only wants to know whether its guest would fit, over whatever `connect` makes.
fn rehearse<S: Read + Write>(connect: impl Fn() -> S) {
    let mut control = connect();
    let hello = Hello {
        dry_run: true,
        ..hello()
    };
    wire::send(&mut control, Kind::Hello, 0, &hello).unwrap();
    assert_eq!(wire::receive(&mut control).unwrap().0.kind, Kind::Accept);
    let mut data = connect();
    wire::send(&mut data, Kind::Join, 0, &TOKEN).unwrap();
    data.write_all(&wire::control(Kind::End, 1, &[])).unwrap();
    wire::send(&mut control, Kind::Round, 1, &1u32).unwrap();
    assert_eq!(wire::receive(&mut control).unwrap().0.kind, Kind::RoundDone);
    wire::send(&mut control, Kind::Abort, 0, &String::new()).unwrap();
}

/// What a stranger does does not keep the one away who comes after it.
fn comes_between(security: &Security, stranger: impl FnOnce(SocketAddr) + Send + 'static) {
    let honest = security.clone();
    let (guest, received) = against_under(security, move |address| {
        stranger(address);
        let connect = || honest.connect(&address.to_string(), &Lifeline::default());
        rehearse(|| connect().unwrap());
    });
    assert!(
        matches!(received, Ok(Received::Rehearsal(Ok(())))),
        "{received:?}"
    );
    assert!(!guest.ran);
}

/// Say `words` a byte at a time; was it hung up on?
fn drip(mut socket: TcpStream, words: &[u8]) -> bool {
    socket.set_nodelay(true).unwrap();
    words.iter().cycle().take(DRIPS).any(|byte| {
        thread::sleep(DRIP);
        socket.write_all(&[*byte]).is_err()
    })
}

/// Certificates of an authority of their own, and security by them.
fn tls(dir: &Path) -> Security {
    let authority = Authority::open_or_create(dir).unwrap();
    authority.mint("a").unwrap().write(&dir.join("a")).unwrap();
    Security::from_dir(Some(&dir.join("a"))).unwrap()
}

#[test]
fn one_that_drips_and_one_that_is_silent_do_not_keep_others_away() {
    let dir = tempfile::tempdir().unwrap();
    // A handshake that goes on for ever, and an offer that does.
    let handshake = [&[0x16, 3, 1, 2, 0][..], &[1; 512]].concat();
    let offer = wire::control(Kind::Hello, 0, &[0; 4096]);
    for (security, words) in [(tls(dir.path()), handshake), (Security::default(), offer)] {
        comes_between(&security, move |address| {
            let connect = || TcpStream::connect(address).unwrap();
            let silent = connect();
            let dripping = connect();
            assert!(drip(dripping, &words), "it was listened to for too long");
            drop(silent);
        });
    }
}

#[test]
fn a_data_connection_that_drips_does_not_keep_its_siblings_away() {
    let (guest, ok) = against(|address| {
        let mut control = TcpStream::connect(address).unwrap();
        wire::send(&mut control, Kind::Hello, 0, &hello()).unwrap();
        wire::receive(&mut control).unwrap();
        let dripping = TcpStream::connect(address).unwrap();
        assert!(drip(dripping, &wire::control(Kind::Join, 0, &[7; 4096])));
        let mut data = TcpStream::connect(address).unwrap();
        wire::send(&mut data, Kind::Join, 0, &TOKEN).unwrap();
        data.write_all(&wire::control(Kind::End, 1, &[])).unwrap();
        wire::send(&mut control, Kind::Round, 1, &1u32).unwrap();
        assert_eq!(wire::receive(&mut control).unwrap().0.kind, Kind::RoundDone);
    });
    assert!(!guest.ran && !ok);
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    let security = tls(&ours);
    drop(tls(&theirs));
    // It trusts us, we must not trust it.
    let authority = "a/authority.pem";
    std::fs::copy(ours.join(authority), theirs.join(authority)).unwrap();
    let foreign = Security::from_dir(Some(&theirs.join("a"))).unwrap();
    comes_between(&security, move |address| {
        let stream = foreign.connect(&address.to_string(), &Lifeline::default());
        // A client of TLS 1.3 hears of the refusal only when it reads.
        if let Ok(mut stream) = stream {
            let _ = wire::send(&mut stream, Kind::Hello, 0, &hello());
            wire::receive(&mut stream).unwrap_err();
        }
    });
}

/// Connect as a source with one data connection does.
fn join(address: SocketAddr) -> (TcpStream, TcpStream) {
    join_with(address, &hello())
}

fn join_with(address: SocketAddr, hello: &Hello) -> (TcpStream, TcpStream) {
    let mut control = TcpStream::connect(address).unwrap();
    wire::send(&mut control, Kind::Hello, 0, hello).unwrap();
    wire::receive(&mut control).unwrap();
    let mut data = TcpStream::connect(address).unwrap();
    wire::send(&mut data, Kind::Join, 0, &TOKEN).unwrap();
    (control, data)
}

#[test]
fn ends_of_rounds_that_nobody_asked_for_are_not_collected() {
    let (guest, ok) = against(|address| {
        let (_control, mut data) = join(address);
        data.set_write_timeout(Some(STUCK)).unwrap();
        let ends = wire::control(Kind::End, 1, &[]).repeat(1 << 10);
        let mut room = FLOOD_BYTES / ends.len();
        while room > 0 && data.write_all(&ends).is_ok() {
            room -= 1;
        }
        assert!(room > 0, "the target took all of it");
    });
    assert!(!guest.ran && !ok);
}

#[test]
fn a_connection_cannot_end_a_round_for_another() {
    let (guest, ok) = against(|address| {
        let offer = Hello {
            connections: 2,
            ..hello()
        };
        let (mut control, mut data) = join_with(address, &offer);
        let mut other = TcpStream::connect(address).unwrap();
        wire::send(&mut other, Kind::Join, 0, &TOKEN).unwrap();
        data.write_all(&wire::control(Kind::End, 1, &[]).repeat(2))
            .unwrap();
        wire::send(&mut control, Kind::Round, 1, &1u32).unwrap();
        wire::receive(&mut control).unwrap_err();
        drop(other);
    });
    assert!(!guest.ran && !ok);
}

#[test]
fn a_data_connection_that_fails_is_closed_at_once() {
    let (guest, ok) = against(|address| {
        let (control, mut data) = join(address);
        data.write_all(&wire::control(Kind::Commit, 1, &[]))
            .unwrap();
        // The control connection has said nothing, and is not asked.
        assert_eq!(data.read(&mut [0]).unwrap_or(0), 0);
        drop(control);
    });
    assert!(!guest.ran && !ok);
}

/// A frame, and whether it comes over the data connection.
type Frame = (bool, Vec<u8>);

/// Frames as a source sends them, with what it would not put into them.
fn frame() -> impl Strategy<Value = Frame> {
    let kind = prop::sample::select(vec![
        Kind::Hello,
        Kind::Accept,
        Kind::Round,
        Kind::RoundDone,
        Kind::State,
        Kind::Ready,
        Kind::Commit,
        Kind::Running,
        Kind::Abort,
        Kind::Draft,
        Kind::Join,
        Kind::Pages,
        Kind::Zero,
        Kind::End,
    ]);
    let noise = (kind, 0u32..4, prop::collection::vec(any::<u8>(), 0..64))
        .prop_map(|(kind, round, payload)| wire::control(kind, round, &payload));
    // Addresses in and beyond memory, whole pages or not.
    let run =
        (0u64..40, prop::sample::select(vec![0, 1, 512]), 0u32..4).prop_map(|(mib, off, pages)| {
            Run {
                address: (mib << 20) + off,
                bytes: pages << 12,
            }
        });
    let kind = prop::sample::select(vec![Kind::Pages, Kind::Zero]);
    let pages = (
        kind,
        0u32..4,
        prop::collection::vec(run, 0..4),
        0usize..20_000,
    )
        .prop_map(|(kind, round, runs, bytes)| {
            let table = wire::page_table(kind, round, &runs);
            [table, vec![0x5a; bytes]].concat()
        });
    let round = (0u32..4).prop_map(|round| wire::control(Kind::End, round, &[]));
    (any::<bool>(), prop_oneof![noise, pages, round])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_sequence_of_frames_runs_a_guest(frames in prop::collection::vec(frame(), 0..12)) {
        let (guest, ok) = against(move |address| {
            let (mut control, mut data) = join(address);
            for (on_data, bytes) in &frames {
                let to = if *on_data { &mut data } else { &mut control };
                // The target may hang up on it at any moment.
                let _ = to.write_all(bytes);
            }
            let _ = data.shutdown(Shutdown::Write);
            let _ = control.shutdown(Shutdown::Write);
            while wire::receive(&mut control).is_ok() {}
        });
        // A state of a few bytes may be one, but it takes a commit right after it.
        prop_assert!(!guest.ran && !ok);
    }

    #[test]
    fn no_offer_keeps_the_next_one_away(
        kind in prop::option::of(prop::sample::select(vec![Kind::Hello, Kind::Join, Kind::Commit])),
        mut noise in prop::collection::vec(any::<u8>(), 0..256),
    ) {
        if let Some(kind) = kind {
            noise = wire::control(kind, 0, &noise);
        }
        comes_between(&Security::default(), move |address| {
            let mut stranger = TcpStream::connect(address).unwrap();
            let _ = stranger.write_all(&noise);
            let _ = stranger.shutdown(Shutdown::Write);
            let _ = stranger.read_to_end(&mut Vec::new());
        });
    }

    #[test]
    fn no_handshake_keeps_the_next_one_away(
        record in prop::option::of((20u8..25, 0u16..600)),
        mut noise in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        if let Some((kind, bytes)) = record {
            let [high, low] = bytes.to_be_bytes();
            noise = [&[kind, 3, 3, high, low], &noise[..]].concat();
        }
        let dir = tempfile::tempdir().unwrap();
        comes_between(&tls(dir.path()), move |address| {
            let mut stranger = TcpStream::connect(address).unwrap();
            let _ = stranger.write_all(&noise);
            let _ = stranger.shutdown(Shutdown::Write);
            let _ = stranger.read_to_end(&mut Vec::new());
        });
    }

    #[test]
    fn an_offer_of_any_number_of_connections_is_met_by_as_many_as_there_can_be(wanted: u32) {
        let (guest, ok) = against(move |address| {
            let offer = Hello { connections: wanted, ..hello() };
            let (control, data) = join_with(address, &offer);
            let _ = control.shutdown(Shutdown::Both);
            drop(data);
        });
        prop_assert!(!guest.ran && !ok);
    }
}
