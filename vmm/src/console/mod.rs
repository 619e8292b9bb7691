//! Where the serial port leads: this terminal, a socket, a file, nowhere.
//!
//! The console outlives the machines that a guest goes through as it reboots: each machine's
//! serial port is plugged in with [`Console::plug`].

mod front;
mod sink;
mod tty;

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::serial::SerialPort;
use crate::notice::Notice;
use crate::socket::SocketPath;
use front::{Front, Input};
use sink::{ClientSink, FileSink};
pub use tty::restore as restore_terminal;

/// Where the serial port leads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ConsoleMode {
    /// To this process's terminal.
    #[default]
    Stdio,
    /// To whoever connects to this Unix socket.
    Socket(PathBuf),
    /// Output is appended to this file.
    File(PathBuf),
    /// Nowhere.
    Off,
}

impl FromStr for ConsoleMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "off" => Ok(Self::Off),
            Some(("socket", path)) if !path.is_empty() => Ok(Self::Socket(path.into())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(format!(
                "{text:?} is no console; write stdio, socket=PATH, file=PATH or off"
            )),
        }
    }
}

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The socket cannot be made.
    #[error(
        "cannot listen on the console socket {}: {source}; choose another path, or remove it \
         if no guest uses it", path.display()
    )]
    Listen {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file cannot be opened.
    #[error("cannot write the console to {}: {source}; choose a path you may write", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Some other reason.
    #[error("cannot set up the console: {0}")]
    Io(#[from] io::Error),
}

type Plug = Arc<Mutex<Option<SerialPort>>>;

/// The console of a guest.
pub struct Console {
    sink: Arc<Mutex<dyn Write + Send>>,
    plug: Plug,
    /// Wakes the thread that reads input: a port was plugged in, or has room again.
    wake: EventFd,
    made: Made,
}

/// What making a console left in the file system.
enum Made {
    Nothing,
    Socket(SocketPath),
    /// A file that was not there before.
    File(PathBuf),
}

impl Made {
    /// Take it away again; a file only if nothing was written to it.
    fn undo(&self) {
        match self {
            Self::Nothing => {}
            Self::Socket(path) => path.leave(),
            Self::File(path) => {
                if std::fs::metadata(path).is_ok_and(|file| file.len() == 0) {
                    // Somebody else may have removed it.
                    let _ = std::fs::remove_file(path);
                }
            }
        }
    }
}

impl Console {
    /// Set the console up; signals that end the process go to `notices` from now on. Call it
    /// before any other thread exists, so that all inherit the signal mask.
    pub fn new(mode: &ConsoleMode, notices: Sender<Notice>) -> Result<Self, ConsoleError> {
        let (sink, input, made) = open(mode)?;
        let plug = Plug::default();
        let wake = EventFd::new(EFD_NONBLOCK)?;
        Front::spawn(input, plug.clone(), wake.try_clone()?, notices)?;
        Ok(Self {
            sink,
            plug,
            wake,
            made,
        })
    }

    /// What a serial port writes to.
    pub fn output(&self) -> Box<dyn Write + Send> {
        Box::new(Shared(self.sink.clone()))
    }

    /// What a serial port signals when it can take input again.
    pub fn drained(&self) -> io::Result<EventFd> {
        self.wake.try_clone()
    }

    /// Input goes to this port from now on.
    pub fn plug(&self, port: SerialPort) {
        if let Made::Socket(path) = &self.made {
            path.belongs_to_a_guest();
        }
        *self.plug.lock().unwrap_or_else(PoisonError::into_inner) = Some(port);
        let _ = self.wake.write(1);
    }
}

impl Console {
    /// The terminal as it was, and no socket left; whoever still holds the console at the
    /// end of the process does not drop it.
    pub fn close(&self) {
        restore_terminal();
        self.made.undo();
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.close();
    }
}

type Opened = (Arc<Mutex<dyn Write + Send>>, Input, Made);

fn open(mode: &ConsoleMode) -> Result<Opened, ConsoleError> {
    match mode {
        ConsoleMode::Stdio => {
            let stdin = io::stdin();
            let is_terminal = stdin.is_terminal();
            if is_terminal {
                tty::make_raw()?;
            }
            let fd = rustix::io::dup(&stdin).map_err(io::Error::from)?;
            let out = rustix::io::dup(io::stdout()).map_err(io::Error::from)?;
            let input = Input::Stream { fd, is_terminal };
            let sink = FileSink(out.into());
            Ok((Arc::new(Mutex::new(sink)), input, Made::Nothing))
        }
        ConsoleMode::Socket(path) => {
            let listening = SocketPath::listen(path);
            let (listener, socket) = listening.map_err(|source| ConsoleError::Listen {
                path: path.clone(),
                source,
            })?;
            let sink = Arc::new(Mutex::new(ClientSink::default()));
            let input = Input::Listener {
                listener,
                sink: sink.clone(),
                clients: Vec::new(),
            };
            Ok((sink, input, Made::Socket(socket)))
        }
        ConsoleMode::File(path) => {
            let (file, made) = open_file(path).map_err(|source| ConsoleError::File {
                path: path.clone(),
                source,
            })?;
            Ok((Arc::new(Mutex::new(FileSink(file))), Input::None, made))
        }
        ConsoleMode::Off => Ok((Arc::new(Mutex::new(io::sink())), Input::None, Made::Nothing)),
    }
}

fn open_file(path: &Path) -> io::Result<(File, Made)> {
    let mut options = OpenOptions::new();
    options.append(true);
    match options.clone().create_new(true).open(path) {
        Ok(file) => Ok((file, Made::File(path.to_owned()))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Ok((options.open(path)?, Made::Nothing))
        }
        Err(error) => Err(error),
    }
}

struct Shared(Arc<Mutex<dyn Write + Send>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read() {
        assert_eq!("stdio".parse(), Ok(ConsoleMode::Stdio));
        assert_eq!("socket=/a".parse(), Ok(ConsoleMode::Socket("/a".into())));
        for text in ["", "socket", "socket=", "file=", "pty", "file"] {
            let error = text.parse::<ConsoleMode>().unwrap_err();
            assert!(error.contains("socket=PATH"), "{error}");
        }
    }
}
