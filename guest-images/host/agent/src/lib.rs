//! What the lab and its agent inside an emulated host say to each other over a virtio-serial port.
//!
//! The port is out of band on purpose: cutting every network cable of a host does not cut the
//! test's own hands. Kept free of anything else, so that the agent's binary (and with it the
//! lab's started template) changes only when this conversation changes.

pub mod frame;

use serde::{Deserialize, Serialize};

/// Name of the virtio-serial port, as the guest sees it in `/sys/class/virtio-ports/*/name`.
pub const PORT_NAME: &str = "godwit.lab";

/// How many bytes of standard input may be on their way to one command, unacknowledged.
pub const INPUT_WINDOW_BYTES: u64 = 1 << 20;

/// Runs one command; the payload of [`frame::Kind::Exec`], as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exec {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Added to the agent's environment.
    pub environment: Vec<(String, String)>,
}

/// How a command ended; the payload of [`frame::Kind::Exit`], as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ended {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It never ran; why.
    NotStarted(String),
}

impl Ended {
    /// As the shell tells it: the exit code, 128 and the signal's number, 127 for what never ran.
    pub fn code(&self) -> i32 {
        match self {
            Self::Code(code) => *code,
            Self::Signal(signal) => 128 + signal,
            Self::NotStarted(_) => 127,
        }
    }
}
