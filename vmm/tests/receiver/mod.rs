//! The target of a migration alone, with a guest that only remembers what was done to it. Real
//! sockets, no KVM.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use storage_core::record::{Holder, LeaseRecord};
use vmm::lease::Verdict;
use vmm::memory::{self, GuestMemory};
use vmm::migration::MigrationError;
use vmm::migration::joining::Listening;
use vmm::migration::stream::Security;
use vmm::migration::target::{self, Received, TargetGuest};
use vmm::migration::wire::{self, Hello};

/// Far below the time in which a silent peer is given up.
const PROMPT: Duration = Duration::from_secs(10);
/// Of the target with strangers.
pub const PATIENCE: Duration = Duration::from_millis(300);
pub const TOKEN: wire::Token = [7; 16];

/// A guest that only remembers what was done to it.
#[derive(Default)]
pub struct Fake {
    pub memory: Option<Arc<GuestMemory>>,
    /// Of the source, which has handed it over.
    lease: Option<LeaseRecord>,
    pub restored: bool,
    pub ran: bool,
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

pub fn hello() -> Hello {
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
pub fn against(source: impl FnOnce(SocketAddr) + Send + 'static) -> (Fake, bool) {
    let (guest, received) = against_under(&Security::default(), source);
    (guest, received.is_ok())
}

/// The same where connections are made as `security` says.
pub fn against_under(
    security: &Security,
    source: impl FnOnce(SocketAddr) + Send + 'static,
) -> (Fake, Result<Received, MigrationError>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let playing = thread::spawn(move || source(address));
    let mut guest = Fake::default();
    let began = Instant::now();
    let listening = Listening {
        listener: &listener,
        security,
        until: None,
        patience: PATIENCE,
    };
    let received = target::receive(&listening, &mut guest);
    assert!(began.elapsed() < PROMPT, "{received:?}");
    playing.join().unwrap();
    (guest, received)
}
