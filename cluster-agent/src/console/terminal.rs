//! The operator's terminal: raw while a console has it, as it was afterwards.

use std::io::{self, IsTerminal, Read};
use std::thread;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::sync::mpsc;

/// Keys are read in pieces of so many bytes.
const CHUNK_BYTES: usize = 256;
/// Pieces that may wait until the console takes them.
const CHUNKS_MAX: usize = 16;

/// Every key goes through while this lives.
pub struct Raw {
    original: Option<Termios>,
}

impl Raw {
    /// Take the terminal, if standard input is one.
    pub fn take() -> io::Result<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self { original: None });
        }
        let original = tcgetattr(&stdin)?;
        let mut raw = original.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Self {
            original: Some(original),
        })
    }

    /// Is there a person at it?
    pub fn is_terminal(&self) -> bool {
        self.original.is_some()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(original) = &self.original {
            // Nothing else can be done about a terminal that has gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, original);
        }
    }
}

/// What is typed, until there is no more. Read on a thread that the process does not wait for
/// at its end: nothing takes a blocked read of a terminal back.
pub fn keys() -> mpsc::Receiver<Vec<u8>> {
    let (typed, keys) = mpsc::channel(CHUNKS_MAX);
    thread::spawn(move || {
        let mut chunk = [0; CHUNK_BYTES];
        while let Ok(bytes @ 1..) = io::stdin().read(&mut chunk) {
            if typed.blocking_send(chunk[..bytes].to_vec()).is_err() {
                return;
            }
        }
    });
    keys
}
