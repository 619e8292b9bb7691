//! The port: reads frames, hands them to the commands, and lets them write theirs.

use std::collections::HashMap;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lab_agent::frame::{Frame, Kind};

use crate::command::Command;

/// How long to wait before looking again while nobody holds the other end of the port.
const UNCONNECTED_PAUSE: Duration = Duration::from_millis(20);

/// The writing half, shared by all commands; each frame is written whole.
#[derive(Clone)]
pub struct Sender(Arc<Mutex<File>>);

impl Sender {
    /// Sends a frame. A port that cannot be written any more takes the whole agent down: init
    /// starts it anew.
    pub fn send(&self, kind: Kind, channel: u32, payload: impl Into<Vec<u8>>) {
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = Frame::new(kind, channel, payload).write(&mut *port) {
            eprintln!("lab-agent: {error}");
            std::process::exit(1);
        }
    }
}

/// A read of 0 bytes means that the other end is not connected (virtio 1.x 5.3): wait for it.
struct Patient(File);

impl Read for Patient {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(into) {
                Ok(0) if !into.is_empty() => std::thread::sleep(UNCONNECTED_PAUSE),
                other => return other,
            }
        }
    }
}

/// Serves the port at `path` for ever.
pub fn serve(path: &str) -> Result<(), Box<dyn Error>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| format!("cannot open {path}: {error}"))?;
    let sender = Sender(Arc::new(Mutex::new(file.try_clone()?)));
    let mut port = io::BufReader::with_capacity(64 << 10, Patient(file));
    let mut commands: HashMap<u32, Command> = HashMap::new();
    loop {
        let frame = Frame::read(&mut port)?;
        commands.retain(|_, command| !command.ended());
        match frame.kind {
            Kind::Ping => sender.send(Kind::Pong, frame.channel, frame.payload),
            Kind::Exec => {
                if let Some(command) = Command::start(&sender, frame.channel, &frame.payload) {
                    commands.insert(frame.channel, command);
                }
            }
            Kind::Input => {
                if let Some(command) = commands.get(&frame.channel) {
                    command.input(frame.payload);
                }
            }
            Kind::Kill => {
                if let Some(command) = commands.get(&frame.channel) {
                    command.kill();
                }
            }
            Kind::Taken | Kind::Output | Kind::Error | Kind::Exit | Kind::Pong => {}
        }
    }
}
