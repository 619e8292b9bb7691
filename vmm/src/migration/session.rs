//! The source's connections to one target, and the rounds of memory that go over them.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vmm_core::migration::{self, Migrate};

use super::MigrationError;
use super::dirty::{SlotBitmap, Tracker};
use super::pages::Touched;
use super::round::Sending;
use super::stream::{Security, Stream};
use super::watch::Watch;
use super::wire::{self, Accept, Hello, Kind};
use crate::kvm::DirtyLog;
use crate::memory::GuestMemory;

/// What moves.
pub struct Guest {
    /// Its dirty log.
    pub log: DirtyLog,
    /// Its memory.
    pub memory: Arc<GuestMemory>,
    /// The offer; token and connections are filled in here.
    pub hello: Hello,
}

/// What memory goes over.
#[derive(Clone, Copy)]
enum Over {
    Data,
    Control,
}

/// Both sides have agreed, and every connection is there.
pub struct Session<'a> {
    wish: &'a Migrate,
    pub(super) watch: &'a Watch,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) tracker: Tracker,
    control: Stream,
    data: Vec<Stream>,
    /// The latest that the target was told of the state.
    draft: Vec<u8>,
    /// What the target has agreed to.
    pub(super) accept: Accept,
    /// Rounds begun.
    pub(super) round: u32,
}

impl<'a> Session<'a> {
    pub(super) fn connect(
        wish: &'a Migrate,
        security: &Security,
        guest: Guest,
        watch: &'a Watch,
    ) -> Result<Self, MigrationError> {
        let processors = thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let connections = migration::connections(wish.connections, processors);
        let hello = Hello {
            connections,
            verify: wish.verify,
            dry_run: wish.dry_run,
            ..guest.hello
        };
        let lifeline = &watch.lifeline;
        let mut control =
            security
                .connect(&wish.to, lifeline)
                .map_err(|source| MigrationError::Unreachable {
                    peer: wish.to.clone(),
                    source,
                })?;
        let lost = || MigrationError::connection("talk to", &wish.to);
        control.trust().map_err(lost())?;
        wire::send(&mut control, Kind::Hello, 0, &hello).map_err(lost())?;
        let accept: Accept = expect(&mut control, Kind::Accept, &wish.to)?;
        let mut data = Vec::new();
        for _ in 0..connections {
            let mut stream = security.connect(&wish.to, lifeline).map_err(lost())?;
            wire::send(&mut stream, Kind::Join, 0, &hello.token).map_err(lost())?;
            data.push(stream);
        }
        Ok(Self {
            wish,
            watch,
            tracker: Tracker::start(guest.log, guest.memory.clone())?,
            memory: guest.memory,
            control,
            data,
            draft: Vec::new(),
            accept,
            round: 0,
        })
    }

    /// The next round has the next number.
    pub(super) fn begin_round(&mut self) {
        self.round += 1;
    }

    /// What was asked for.
    pub(super) fn wish(&self) -> &'a Migrate {
        self.wish
    }

    /// Send all dirty pages over all connections. The target's confirmation is still to come.
    pub(super) fn send_round(
        &mut self,
        dirty: &[SlotBitmap],
        touched: Option<&Touched>,
        goes_on: bool,
    ) -> Result<(), MigrationError> {
        self.send(dirty, touched, goes_on, Over::Data)?;
        let round = self.round;
        self.tell(Kind::Round, &round)
    }

    /// Send dirty pages, of which there are few, ahead of what is told next. The guest stands still.
    pub(super) fn send_in_line(&mut self, dirty: &[SlotBitmap]) -> Result<(), MigrationError> {
        self.send(dirty, None, false, Over::Control)
    }

    fn send(
        &mut self,
        dirty: &[SlotBitmap],
        touched: Option<&Touched>,
        goes_on: bool,
        over: Over,
    ) -> Result<(), MigrationError> {
        let bytes = dirty.iter().map(SlotBitmap::dirty_bytes).sum();
        self.watch.begin_round(self.round, bytes);
        let sending = Sending {
            number: self.round,
            dirty,
            touched,
            goes_on,
            tracker: &self.tracker,
            memory: &self.memory,
            watch: self.watch,
            bandwidth_max: self.wish.bandwidth_max,
            to: &self.wish.to,
        };
        match over {
            Over::Data => sending.send(&mut self.data),
            Over::Control => sending.send_in_line(&mut self.control),
        }
    }

    /// Tell the target what is known of the state beforehand, unless it was told the same.
    pub(super) fn tell_draft(&mut self, draft: Vec<u8>) -> Result<(), MigrationError> {
        if draft == self.draft {
            return Ok(());
        }
        self.tell(Kind::Draft, &draft)?;
        self.draft = draft;
        Ok(())
    }

    /// The target has all of the round. It may not know yet of a data connection that is lost.
    pub(super) fn hear_round_done(&mut self) -> Result<(), MigrationError> {
        self.control
            .wait_beside(&self.data)
            .map_err(MigrationError::connection("send memory to", &self.wish.to))?;
        let done: u32 = self.expect(Kind::RoundDone)?;
        if done != self.round {
            let why = format!("it confirms round {done} instead of {}", self.round);
            return Err(MigrationError::Protocol(why));
        }
        Ok(())
    }

    pub(super) fn tell<T: serde::Serialize>(
        &mut self,
        kind: Kind,
        payload: &T,
    ) -> Result<(), MigrationError> {
        wire::send(&mut self.control, kind, self.round, payload)
            .map_err(MigrationError::connection("talk to", &self.wish.to))
    }

    /// Read the control frame that must come now.
    pub(super) fn expect<T: serde::de::DeserializeOwned>(
        &mut self,
        kind: Kind,
    ) -> Result<T, MigrationError> {
        expect(&mut self.control, kind, &self.wish.to)
    }

    /// The target is not waited for any longer than this from now on.
    pub(super) fn hurry(&self, limit: Duration) {
        // Without it the wait is longer, and ends all the same.
        let _ = self.control.hurry(limit);
    }

    /// Tell the target that nothing will come of it.
    pub(super) fn abort(&mut self, why: &str) {
        // It may be the connection that failed; closing it says the same.
        let _ = wire::send(&mut self.control, Kind::Abort, 0, &why.to_owned());
    }
}

fn expect<T: serde::de::DeserializeOwned>(
    control: &mut Stream,
    kind: Kind,
    peer: &str,
) -> Result<T, MigrationError> {
    let (header, payload) =
        wire::receive(control).map_err(MigrationError::connection("hear from", &peer))?;
    let decoded = |error: std::io::Error| MigrationError::Protocol(error.to_string());
    if header.kind == Kind::Refuse {
        return Err(MigrationError::Refused(
            wire::decode(&payload).map_err(decoded)?,
        ));
    }
    if header.kind != kind {
        let why = format!("{:?} came where {kind:?} was due", header.kind);
        return Err(MigrationError::Protocol(why));
    }
    wire::decode(&payload).map_err(decoded)
}
