//! This side of the conversation with the agent in a host: many commands at a time over one port.

use std::collections::HashMap;
use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use lab_agent::frame::{Frame, Kind, PAYLOAD_LIMIT_BYTES};
use lab_agent::{Ended, Exec, INPUT_WINDOW_BYTES};

use crate::error::During;
use crate::{LabError, Result};

/// What a command may write that nobody has taken yet; beyond it the command is killed.
const QUEUE_LIMIT_BYTES: u64 = 256 << 20;

/// What a running command tells.
#[derive(Debug)]
pub enum Event {
    /// Bytes of standard output.
    Output(Vec<u8>),
    /// Bytes of standard error.
    Error(Vec<u8>),
    /// The end.
    Ended(Ended),
}

/// A connection to the agent of one host; cheap to clone.
#[derive(Clone, Debug)]
pub struct Agent(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    host: String,
    port: Mutex<UnixStream>,
    channels: Mutex<HashMap<u32, Arc<Channel>>>,
    next_channel: AtomicU32,
}

#[derive(Debug)]
struct Channel {
    events: mpsc::Sender<Event>,
    queued_bytes: AtomicU64,
    unacknowledged_bytes: Mutex<u64>,
    acknowledged: Condvar,
}

/// A command that runs in a host.
#[derive(Debug)]
pub struct Running {
    agent: Agent,
    number: u32,
    channel: Arc<Channel>,
    events: mpsc::Receiver<Event>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    /// Connects to the port of a machine that listens already.
    pub fn connect(host: &str, path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).during("connect to", path)?;
        let reading = stream.try_clone().during("read from", path)?;
        let shared = Arc::new(Shared {
            host: host.into(),
            port: Mutex::new(stream),
            channels: Mutex::default(),
            next_channel: AtomicU32::new(1),
        });
        let weak = Arc::downgrade(&shared);
        thread::spawn(move || {
            let mut port = BufReader::with_capacity(PAYLOAD_LIMIT_BYTES, reading);
            while let Ok(frame) = Frame::read(&mut port) {
                let Some(shared) = weak.upgrade() else { return };
                shared.dispatch(frame);
            }
            if let Some(shared) = weak.upgrade() {
                // Whoever waits for a command learns from the closed channel that the host is gone.
                lock(&shared.channels).clear();
            }
        });
        Ok(Self(shared))
    }

    /// Waits until the agent answers.
    pub fn ping(&self, limit: Duration) -> Result<()> {
        let (running, number) = self.open();
        self.send(Kind::Ping, number, [])?;
        match running.next(Instant::now() + limit) {
            Some(_) => Ok(()),
            None => Err(LabError::TooLate {
                what: format!("the agent of host {} answering", self.0.host),
                limit,
            }),
        }
    }

    /// Starts a command.
    pub fn start(&self, exec: &Exec) -> Result<Running> {
        let (running, number) = self.open();
        let request = serde_json::to_vec(exec).map_err(|error| error.to_string())?;
        self.send(Kind::Exec, number, request)?;
        Ok(running)
    }

    fn open(&self) -> (Running, u32) {
        let number = self.0.next_channel.fetch_add(1, Ordering::Relaxed);
        let (events, inbox) = mpsc::channel();
        let channel = Arc::new(Channel {
            events,
            queued_bytes: AtomicU64::new(0),
            unacknowledged_bytes: Mutex::new(0),
            acknowledged: Condvar::new(),
        });
        lock(&self.0.channels).insert(number, channel.clone());
        (
            Running {
                agent: self.clone(),
                number,
                channel,
                events: inbox,
            },
            number,
        )
    }

    fn send(&self, kind: Kind, channel: u32, payload: impl Into<Vec<u8>>) -> Result<()> {
        Frame::new(kind, channel, payload)
            .write(&mut *lock(&self.0.port))
            .map_err(|cause| LabError::Agent {
                host: self.0.host.clone(),
                cause,
            })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Wakes the reading thread, which holds the other half.
        let _ = lock(&self.port).shutdown(std::net::Shutdown::Both);
    }
}

impl Shared {
    fn dispatch(&self, frame: Frame) {
        let mut channels = lock(&self.channels);
        let Some(channel) = channels.get(&frame.channel).cloned() else {
            return;
        };
        let bytes = frame.payload.len() as u64;
        let event = match frame.kind {
            Kind::Output => Event::Output(frame.payload),
            Kind::Error => Event::Error(frame.payload),
            Kind::Pong => Event::Ended(Ended::Code(0)),
            Kind::Exit => Event::Ended(
                serde_json::from_slice(&frame.payload)
                    .unwrap_or_else(|error| Ended::NotStarted(error.to_string())),
            ),
            Kind::Taken => {
                let taken = frame
                    .payload
                    .first_chunk()
                    .map_or(0, |bytes| u64::from_le_bytes(*bytes));
                let mut waiting = lock(&channel.unacknowledged_bytes);
                *waiting = waiting.saturating_sub(taken);
                channel.acknowledged.notify_all();
                return;
            }
            Kind::Exec | Kind::Input | Kind::Kill | Kind::Ping => return,
        };
        if matches!(event, Event::Ended(_)) {
            channels.remove(&frame.channel);
            // Input that still waits for room never will be taken.
            *lock(&channel.unacknowledged_bytes) = 0;
            channel.acknowledged.notify_all();
        }
        drop(channels);
        if channel.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > QUEUE_LIMIT_BYTES {
            let _ = Frame::new(Kind::Kill, frame.channel, []).write(&mut *lock(&self.port));
            return;
        }
        let _ = channel.events.send(event);
    }
}

impl Running {
    /// The next thing the command tells; `None` when `deadline` passes or the host is gone.
    pub fn next(&self, deadline: Instant) -> Option<Event> {
        let event = self
            .events
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            .ok()?;
        if let Event::Output(bytes) | Event::Error(bytes) = &event {
            self.channel
                .queued_bytes
                .fetch_sub(bytes.len() as u64, Ordering::Relaxed);
        }
        Some(event)
    }

    /// A handle that feeds its standard input from another thread.
    pub fn input(&self) -> Input {
        Input {
            agent: self.agent.clone(),
            number: self.number,
            channel: self.channel.clone(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nobody listens any more: an ended command has left the table, another one is killed.
        if lock(&self.agent.0.channels).remove(&self.number).is_some() {
            let _ = self.agent.send(Kind::Kill, self.number, []);
        }
    }
}

/// Standard input of a command that runs in a host.
#[derive(Clone, Debug)]
pub struct Input {
    agent: Agent,
    number: u32,
    channel: Arc<Channel>,
}

impl Input {
    /// Sends bytes; blocks while [`INPUT_WINDOW_BYTES`] are on their way, `limit` at most.
    pub fn write(&self, bytes: &[u8], limit: Duration) -> Result<()> {
        for chunk in bytes.chunks(PAYLOAD_LIMIT_BYTES) {
            let waiting = lock(&self.channel.unacknowledged_bytes);
            let (mut waiting, late) = self
                .channel
                .acknowledged
                .wait_timeout_while(waiting, limit, |waiting| {
                    *waiting + chunk.len() as u64 > INPUT_WINDOW_BYTES
                })
                .unwrap_or_else(PoisonError::into_inner);
            if late.timed_out() {
                let what = format!("a command on host {} taking its input", self.agent.0.host);
                return Err(LabError::TooLate { what, limit });
            }
            *waiting += chunk.len() as u64;
            drop(waiting);
            self.agent.send(Kind::Input, self.number, chunk)?;
        }
        Ok(())
    }

    /// Closes it.
    pub fn close(&self) -> Result<()> {
        self.agent.send(Kind::Input, self.number, [])
    }

    /// Kills the command and all it started.
    pub fn kill(&self) {
        // A lost port has ended the command already.
        let _ = self.agent.send(Kind::Kill, self.number, []);
    }
}
