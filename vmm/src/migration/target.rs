//! The target of a migration.
//!
//! ```text
//!   listening ──► built ──► receiving ──► ready ──► committed ──► running
//!       │           │           │           │ the lease decides
//!       └───────────┴───────────┴───────────┴──► gone, leaving nothing behind
//! ```

use std::convert::Infallible;
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use storage_core::record::Holder;

use super::MigrationError;
use super::joining::{Listening, join_all, take_offer};
use super::pages;
use super::stream::Stream;
use super::wire::{self, Accept, Hello, Kind, Ready, Running, StateFrame};
use crate::lease::Verdict;
use crate::memory::GuestMemory;
use crate::urgent::Urgent;

/// A source that has not said a word for so long at the commit may be cut off: whether it handed
/// the lease over is looked up as often, until it is heard or lost.
const WORD_PAUSE: Duration = Duration::from_millis(300);
/// After it was lost, the datastore has to say so often that the lease has not been handed over ...
const VERDICT_LOOKS: u32 = 300;
/// ... with these pauses, and may give no answer for so long in all.
const VERDICT_PAUSE: Duration = Duration::from_millis(200);
const VERDICT_LIMIT: Duration = Duration::from_mins(10);

/// The round whose pages do not exist here yet.
const FIRST_ROUND: u32 = 1;

/// What the migration needs of whoever builds the guest here.
pub trait TargetGuest {
    /// Check the offer and build the whole machine; returns its memory.
    fn build(&mut self, hello: &Hello) -> Result<Arc<GuestMemory>, String>;
    /// How long copying the state of such a machine and pouring it in takes; after a `dry_run`
    /// the machine is thrown away.
    fn state_takes(&mut self, dry_run: bool) -> Result<Duration, String>;
    /// Who would hold the lease here; none without a datastore.
    fn holder(&self) -> Option<Holder>;
    /// Pour in what is known of the machine's state beforehand.
    fn prepare(&mut self, draft: &[u8]) -> Result<(), String>;
    /// Pour in the machine's state; an operator has `paused` the guest, or not. Whatever can fail
    /// is done now.
    fn restore(&mut self, machine: &[u8], paused: bool) -> Result<(), String>;
    /// What the datastore says about this very hand-over; `None` when it says nothing.
    fn verdict(&mut self) -> Option<Verdict>;
    /// The guest is ours: run it. When it began to, as far as that can be told already.
    fn run(&mut self) -> Result<Option<Instant>, String>;
    /// It runs: let the network know where.
    fn announce(&mut self);
    /// Nothing will come of it: let go of everything that was built.
    fn forget(&mut self);
}

/// What came.
#[derive(Debug)]
pub enum Received {
    /// The guest runs here.
    Guest,
    /// A dry run, which went like this; the guest is as if nothing had been.
    Rehearsal(Result<(), MigrationError>),
}

/// Take in one guest from whoever connects.
pub fn receive(
    listening: &Listening<'_>,
    guest: &mut dyn TargetGuest,
) -> Result<Received, MigrationError> {
    let (control, hello) = take_offer(listening)?;
    let came = welcome(listening, control, &hello, guest);
    if hello.dry_run {
        guest.forget();
        return Ok(Received::Rehearsal(came));
    }
    came.map(|()| Received::Guest)
}

/// Do for this source what there is to do.
fn welcome(
    listening: &Listening<'_>,
    mut control: Stream,
    hello: &Hello,
    guest: &mut dyn TargetGuest,
) -> Result<(), MigrationError> {
    let built = guest.build(hello).and_then(|memory| {
        let state_takes = guest.state_takes(hello.dry_run)?;
        Ok((memory, state_takes))
    });
    let (memory, state_takes) = match built {
        Ok(built) => built,
        Err(why) => {
            let _ = wire::send(&mut control, Kind::Refuse, 0, &why);
            return Err(MigrationError::Here(why));
        }
    };
    let accept = Accept {
        holder: guest.holder(),
        state_us: state_takes.as_micros() as u64,
    };
    tell(&mut control, Kind::Accept, 0, &accept)?;
    let data = join_all(listening, hello, &control)?;
    // Waiting threads wake up when their sockets are closed, however this ends.
    let closers = data.iter().map(|stream| Mutex::new(stream.closer().ok()));
    let closers = Closers(closers.collect());
    let connections = data.len();
    thread::scope(|scope| {
        // Each has one thing to say a round; one that says more waits until it is asked for.
        let (ends, ended) = sync_channel(connections);
        for (connection, stream) in data.into_iter().enumerate() {
            let (memory, ends, closers) = (&*memory, ends.clone(), &closers);
            scope.spawn(move || receive_data(connection, stream, memory, &ends, closers));
        }
        drop(ends);
        let received = Target {
            control,
            memory: &memory,
            connections,
            ended,
            guest,
            urgent: None,
        }
        .run(hello);
        closers.close();
        received
    })
}

/// Of each data connection.
struct Closers(Vec<Mutex<Option<TcpStream>>>);

impl Closers {
    fn close(&self) {
        for connection in 0..self.0.len() {
            if let Some(socket) = self.take(connection) {
                // It may be closed already.
                let _ = socket.shutdown(std::net::Shutdown::Both);
            }
        }
    }

    fn take(&self, connection: usize) -> Option<TcpStream> {
        let lock = self.0[connection].lock();
        lock.unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What a data connection has to say: the end of a round, or its own.
struct End {
    connection: usize,
    what: Result<u32, String>,
}

fn receive_data(
    connection: usize,
    mut stream: Stream,
    memory: &GuestMemory,
    ends: &SyncSender<End>,
    closers: &Closers,
) {
    // The receiver is gone when the migration is over.
    let tell = |what| ends.send(End { connection, what });
    let error = loop {
        match receive_frame(&mut stream, memory) {
            Ok(None) => {}
            Ok(Some(round)) if tell(Ok(round)).is_ok() => {}
            Ok(Some(_)) => return,
            Err(error) => break error,
        }
    };
    // Closed, with what was not read, it resets a source that waits for room in it. Shut for
    // reading, it would leave the source to find out when it next probes for room (200 ms).
    drop((stream, closers.take(connection)));
    let _ = tell(Err(error.to_string()));
}

/// One frame; the round that it ends, if it does.
fn receive_frame(stream: &mut Stream, memory: &GuestMemory) -> std::io::Result<Option<u32>> {
    let (header, table) = wire::receive(stream)?;
    match header.kind {
        Kind::End => Ok(Some(header.round)),
        Kind::Pages | Kind::Zero => take_pages(stream, memory, header, &table).map(|()| None),
        other => Err(std::io::Error::other(format!(
            "{other:?} does not belong among pages"
        ))),
    }
}

/// The pages of the frame that began with `header` and `table`.
fn take_pages(
    stream: &mut Stream,
    memory: &GuestMemory,
    header: wire::Header,
    table: &[u8],
) -> std::io::Result<()> {
    if header.kind == Kind::Zero {
        return pages::clear(memory, table);
    }
    let places = pages::places(memory, table)?;
    if header.round == FIRST_ROUND {
        pages::make(&places);
    }
    stream.receive_pages(&places)
}

struct Target<'a> {
    control: Stream,
    memory: &'a GuestMemory,
    connections: usize,
    ended: Receiver<End>,
    guest: &'a mut dyn TargetGuest,
    /// Until the guest runs.
    urgent: Option<Urgent>,
}

impl Target<'_> {
    fn run(&mut self, hello: &Hello) -> Result<(), MigrationError> {
        // Little is to be done here before the guest stands still, except for comparing memory.
        self.urgent = (!hello.verify).then(Urgent::new);
        loop {
            let (header, payload) = self.hear()?;
            match header.kind {
                Kind::Round => self.finish_round(header.round)?,
                Kind::Draft if !hello.dry_run => {
                    let draft = wire::decode::<Vec<u8>>(&payload)
                        .map_err(|error| MigrationError::Protocol(error.to_string()))?;
                    let prepared = self.guest.prepare(&draft);
                    self.or_refuse(prepared)?;
                }
                // What was left when the guest was stopped.
                Kind::Pages | Kind::Zero => {
                    take_pages(&mut self.control, self.memory, header, &payload)
                        .map_err(MigrationError::connection("hear from", &"the source"))?;
                }
                Kind::State if !hello.dry_run => {
                    let state = wire::decode::<StateFrame>(&payload)
                        .map_err(|error| MigrationError::Protocol(error.to_string()))?;
                    self.take_state(hello, &state)?;
                    return self.take_over(hello);
                }
                Kind::Abort => {
                    if hello.dry_run {
                        return Ok(());
                    }
                    let why = wire::decode::<String>(&payload).unwrap_or_default();
                    return Err(MigrationError::Refused(why));
                }
                other => {
                    let why = format!("{other:?} does not belong here");
                    return Err(MigrationError::Protocol(why));
                }
            }
        }
    }

    fn hear(&mut self) -> Result<(wire::Header, Vec<u8>), MigrationError> {
        wire::receive(&mut self.control)
            .map_err(MigrationError::connection("hear from", &"the source"))
    }

    /// Every data connection has to have said that it is through with the round.
    fn finish_round(&mut self, round: u32) -> Result<(), MigrationError> {
        let mut through = vec![false; self.connections];
        while through.contains(&false) {
            let Ok(End { connection, what }) = self.ended.recv() else {
                return Err(MigrationError::Here("a receiving thread has died".into()));
            };
            let ended = what.map_err(MigrationError::Protocol)?;
            if ended != round {
                let why = format!("round {ended} ended where {round} was under way");
                return Err(MigrationError::Protocol(why));
            }
            if std::mem::replace(&mut through[connection], true) {
                let why = format!("a data connection ended round {round} twice");
                return Err(MigrationError::Protocol(why));
            }
        }
        tell(&mut self.control, Kind::RoundDone, round, &round)
    }

    fn take_state(&mut self, hello: &Hello, state: &StateFrame) -> Result<(), MigrationError> {
        let verified = match state.memory_hash {
            Some(sent) if pages::hash(self.memory, || Ok::<_, Infallible>(())) == Ok(sent) => {
                Ok(true)
            }
            Some(_) => Err("memory arrived different from how it was sent".to_owned()),
            None if hello.verify => Err("the source sent no hash of memory".to_owned()),
            None => Ok(false),
        };
        let here = verified.and_then(|verified| {
            self.guest.restore(&state.machine, state.paused)?;
            Ok(Ready { verified })
        });
        let ready = self.or_refuse(here)?;
        tell(&mut self.control, Kind::Ready, 0, &ready)
    }

    /// What failed here is told to the source.
    fn or_refuse<T>(&mut self, done: Result<T, String>) -> Result<T, MigrationError> {
        done.map_err(|why| {
            // It may be gone.
            let _ = wire::send(&mut self.control, Kind::Refuse, 0, &why);
            MigrationError::Here(why)
        })
    }

    /// Wait for the commit, in the source's words or by the lease, which decides.
    fn take_over(&mut self, hello: &Hello) -> Result<(), MigrationError> {
        if hello.lease.is_none() {
            self.hear_commit()?;
        } else if !self.lease_came_first()? {
            match self.hear_commit() {
                Err(error @ MigrationError::Connection { .. }) => self.ask_the_lease(error)?,
                heard => heard?,
            }
        }
        let began = Instant::now();
        let runs_since = self.guest.run().map_err(MigrationError::Here)?;
        self.urgent = None;
        // The guest may have taken the processor away from this thread.
        let runs_since = runs_since.unwrap_or_else(Instant::now);
        let took_us = runs_since.saturating_duration_since(began).as_micros() as u64;
        // The source may be gone; the guest runs all the same.
        let _ = wire::send(&mut self.control, Kind::Running, 0, &Running { took_us });
        self.guest.announce();
        Ok(())
    }

    fn hear_commit(&mut self) -> Result<(), MigrationError> {
        let (header, payload) = self.hear()?;
        match header.kind {
            Kind::Commit => Ok(()),
            Kind::Abort => {
                let why = wire::decode::<String>(&payload).unwrap_or_default();
                Err(MigrationError::Refused(why))
            }
            other => {
                let why = format!("{other:?} came where Commit was due");
                Err(MigrationError::Protocol(why))
            }
        }
    }

    /// Until the source says something or is lost: has it handed the lease over without our hearing
    /// of it?
    fn lease_came_first(&mut self) -> Result<bool, MigrationError> {
        loop {
            let heard = self.control.speaks_within(WORD_PAUSE);
            if heard.map_err(MigrationError::connection("hear from", &"the source"))? {
                return Ok(false);
            }
            if let Some(Verdict::Done(_)) = self.guest.verdict() {
                return Ok(true);
            }
        }
    }

    fn ask_the_lease(&mut self, error: MigrationError) -> Result<(), MigrationError> {
        let give_up = Instant::now() + VERDICT_LIMIT;
        let mut looks = 0;
        while looks < VERDICT_LOOKS && Instant::now() < give_up {
            match self.guest.verdict() {
                Some(Verdict::Done(_)) => return Ok(()),
                Some(Verdict::Void(_)) => return Err(error),
                Some(Verdict::Open) => looks += 1,
                None => {}
            }
            thread::sleep(VERDICT_PAUSE);
        }
        Err(error)
    }
}

fn tell<T: serde::Serialize>(
    control: &mut Stream,
    kind: Kind,
    round: u32,
    payload: &T,
) -> Result<(), MigrationError> {
    wire::send(control, kind, round, payload)
        .map_err(MigrationError::connection("talk to", &"the source"))
}
