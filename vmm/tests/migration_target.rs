//! The target of a migration against sources that die at any step, or are no sources at all.
//! Real sockets, no KVM.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use storage_core::record::{Grant, Holder, LeaseRecord};
use vm_memory::{Bytes, GuestAddress};
use vmm::lease::Verdict;
use vmm::memory::{self, GuestMemory};
use vmm::migration::joining::Listening;
use vmm::migration::stream::Security;
use vmm::migration::target::{self, TargetGuest};
use vmm::migration::wire::{self, Hello, Kind, Run, StateFrame};

/// Far below the time in which a silent peer is given up.
const PROMPT: Duration = Duration::from_secs(10);
const TOKEN: wire::Token = [7; 16];

/// A guest that only remembers what was done to it.
#[derive(Default)]
struct Fake {
    memory: Option<Arc<GuestMemory>>,
    /// Of the source, which has handed it over.
    lease: Option<LeaseRecord>,
    restored: bool,
    ran: bool,
}

impl TargetGuest for Fake {
    fn build(&mut self, hello: &Hello) -> Result<Arc<GuestMemory>, String> {
        self.lease.clone_from(&hello.lease);
        let memory = memory::map(16, false).map_err(|error| error.to_string())?;
        Ok(self.memory.insert(Arc::new(memory)).clone())
    }

    fn state_takes(&mut self, _: bool) -> Result<Duration, String> {
        Ok(Duration::from_millis(1))
    }

    fn holder(&self) -> Option<Holder> {
        None
    }

    fn prepare(&mut self, _: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn restore(&mut self, _: &[u8], _: bool) -> Result<(), String> {
        self.restored = true;
        Ok(())
    }

    fn verdict(&mut self) -> Option<Verdict> {
        self.lease.clone().map(Verdict::Done)
    }

    fn run(&mut self) -> Result<Option<Instant>, String> {
        assert!(self.restored, "it runs without a state");
        self.ran = true;
        Ok(None)
    }

    fn announce(&mut self) {}

    fn forget(&mut self) {
        self.memory = None;
    }
}

fn hello() -> Hello {
    Hello {
        spec: String::new(),
        state_version: 1,
        cpuid: vec![],
        lease: None,
        disks: vec![],
        connections: 1,
        token: TOKEN,
        verify: false,
        dry_run: false,
    }
}

/// Let `source` play against a target; what became of the guest there, and how it ended.
fn against(source: impl FnOnce(SocketAddr) + Send + 'static) -> (Fake, bool) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let playing = thread::spawn(move || source(address));
    let mut guest = Fake::default();
    let began = Instant::now();
    let listening = Listening {
        listener: &listener,
        security: &Security::default(),
        until: None,
    };
    let received = target::receive(&listening, &mut guest);
    assert!(began.elapsed() < PROMPT, "{received:?}");
    playing.join().unwrap();
    (guest, received.is_ok())
}

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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn noise_never_runs_a_guest(
        on_data: bool,
        kind in prop::sample::select(vec![
            Kind::Pages, Kind::Zero, Kind::Draft, Kind::State, Kind::Commit, Kind::Ready, Kind::Round,
        ]),
        payload in prop::collection::vec(any::<u8>(), 0..96),
        raw in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let (guest, ok) = against(move |address| {
            let mut control = TcpStream::connect(address).unwrap();
            wire::send(&mut control, Kind::Hello, 0, &hello()).unwrap();
            wire::receive(&mut control).unwrap();
            let mut data = TcpStream::connect(address).unwrap();
            wire::send(&mut data, Kind::Join, 0, &TOKEN).unwrap();
            let noise = [wire::control(kind, 1, &payload), raw].concat();
            // The target may hang up on it at any moment.
            let _ = if on_data { &mut data } else { &mut control }.write_all(&noise);
            let _ = data.shutdown(Shutdown::Write);
            let _ = control.shutdown(Shutdown::Write);
            let _ = wire::receive(&mut control);
        });
        prop_assert!(!guest.ran && !ok);
    }
}
