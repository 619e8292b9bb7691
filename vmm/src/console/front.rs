//! The thread at the front desk: console input, and the signals that end the process.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::EventFd;

use super::Plug;
use super::sink::ClientSink;
use crate::devices::serial::SerialPort;
use crate::drive::end_soon;
use crate::notice::Notice;

/// Control and ]: ends the guest, as pulling its plug would.
const ESCAPE: u8 = 0x1d;
/// Signals that ask the process to end.
const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
const CHUNK_BYTES: usize = 64;
/// Clients of a console socket at a time.
const CLIENTS_MAX: usize = 8;
const STACK_BYTES: usize = 128 << 10;

/// Where input comes from.
pub enum Input {
    None,
    Stream {
        fd: OwnedFd,
        is_terminal: bool,
    },
    Listener {
        listener: UnixListener,
        sink: Arc<Mutex<ClientSink>>,
        /// In the order of the sink's.
        clients: Vec<UnixStream>,
    },
}

pub struct Front {
    input: Input,
    plug: Plug,
    wake: EventFd,
    signals: File,
    notices: Sender<Notice>,
}

impl Front {
    pub fn spawn(
        input: Input,
        plug: Plug,
        wake: EventFd,
        notices: Sender<Notice>,
    ) -> io::Result<()> {
        let mut front = Self {
            input,
            plug,
            wake,
            signals: signals()?,
            notices,
        };
        thread::Builder::new()
            .name("front".into())
            .stack_size(STACK_BYTES)
            .spawn(move || while let Ok(()) = front.serve() {})?;
        Ok(())
    }

    /// Wait for something and deal with it. An error ends the thread: nobody listens.
    fn serve(&mut self) -> io::Result<()> {
        let room = self.room();
        // SAFETY: `self.wake` is open and stays so for the whole call.
        let wake = unsafe { BorrowedFd::borrow_raw(self.wake.as_raw_fd()) };
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::from_borrowed_fd(wake, PollFlags::IN),
        ];
        let sources = self.sources(room > 0);
        fds.extend(
            sources
                .into_iter()
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
        );
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            other => other?,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            let mut info = [0; size_of::<libc::signalfd_siginfo>()];
            self.signals.read_exact(&mut info)?;
            self.ask_for_the_end()?;
        }
        if ready[1] {
            let _ = self.wake.read();
        }
        self.read_input(room, &ready[2..])
    }

    fn ask_for_the_end(&self) -> io::Result<()> {
        let sent = self.notices.send(Notice::Off);
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        end_soon();
        Ok(())
    }

    fn room(&self) -> usize {
        let plug = self.plug.lock().unwrap_or_else(PoisonError::into_inner);
        plug.as_ref().map_or(0, SerialPort::room)
    }

    /// What to wait for; what is typed has to wait while the guest has no room for it.
    fn sources(&self, room: bool) -> Vec<BorrowedFd<'_>> {
        match &self.input {
            Input::Stream { fd, .. } if room => vec![fd.as_fd()],
            Input::None | Input::Stream { .. } => vec![],
            Input::Listener {
                listener, clients, ..
            } => {
                let typing = clients.iter().filter(|_| room).map(AsFd::as_fd);
                std::iter::once(listener.as_fd()).chain(typing).collect()
            }
        }
    }

    /// `ready` says which of the sources have something.
    fn read_input(&mut self, room: usize, ready: &[bool]) -> io::Result<()> {
        match &self.input {
            Input::Stream { .. } if ready.first() == Some(&true) => self.read_stream(room),
            Input::None | Input::Stream { .. } => Ok(()),
            Input::Listener { .. } => {
                // One client a turn, the latest first: who leaves moves nobody that is still
                // to be asked, and the room is counted anew.
                let typing = ready.iter().skip(1).rposition(|ready| *ready);
                if let Some(client) = typing {
                    self.read_client(room, client);
                }
                if ready.first() == Some(&true) {
                    self.accept()?;
                }
                Ok(())
            }
        }
    }

    fn read_stream(&mut self, room: usize) -> io::Result<()> {
        let Input::Stream { fd, is_terminal } = &self.input else {
            return Ok(());
        };
        let mut chunk = [0; CHUNK_BYTES];
        let chunk = &mut chunk[..room.min(CHUNK_BYTES)];
        let is_terminal = *is_terminal;
        let bytes = rustix::io::read(fd, &mut *chunk).unwrap_or(0);
        if bytes == 0 {
            self.input = Input::None;
        } else if asks_for_the_end(&chunk[..bytes], is_terminal) {
            return self.ask_for_the_end();
        }
        self.feed(&chunk[..bytes]);
        Ok(())
    }

    fn read_client(&mut self, room: usize, client: usize) {
        let Input::Listener { sink, clients, .. } = &mut self.input else {
            return;
        };
        let mut chunk = [0; CHUNK_BYTES];
        let chunk = &mut chunk[..room.min(CHUNK_BYTES)];
        match clients[client].read(chunk) {
            Ok(bytes) if bytes > 0 => self.feed(&chunk[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => {
                clients.remove(client);
                let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
                sink.disconnect(client);
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        let Input::Listener {
            listener,
            sink,
            clients,
        } = &mut self.input
        else {
            return Ok(());
        };
        let (mut stream, _) = listener.accept()?;
        stream.set_nonblocking(true)?;
        if clients.len() == CLIENTS_MAX {
            // It has gone if it does not hear it.
            let _ = writeln!(
                stream,
                "the console has {CLIENTS_MAX} viewers already; try again when one has left\r"
            );
            return Ok(());
        }
        let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
        sink.connect(stream.try_clone()?);
        clients.push(stream);
        Ok(())
    }

    /// The chunk was cut to the room there is, and only this thread fills it.
    fn feed(&self, bytes: &[u8]) {
        let plug = self.plug.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(port) = plug.as_ref() {
            port.feed(bytes);
        }
    }
}

/// Only a person's key does: what a program sends through a pipe is the guest's, every byte of it.
fn asks_for_the_end(typed: &[u8], is_terminal: bool) -> bool {
    is_terminal && typed.contains(&ESCAPE)
}

/// Block the ending signals in this and all later threads, and read them from a file.
fn signals() -> io::Result<File> {
    // SAFETY: plain calls on a local set; the new descriptor is owned by nobody else.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in ENDING {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(File::from(OwnedFd::from_raw_fd(fd)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_is_a_persons_key() {
        for typed in [&b"\x1d"[..], b"ls\n\x1d", b"\x1dmore"] {
            assert!(asks_for_the_end(typed, true), "{typed:?}");
            assert!(!asks_for_the_end(typed, false), "{typed:?}");
        }
        for typed in [
            &b""[..],
            b"ls\n",
            b"\x03\x04\x1a\x1b[A",
            "\u{1d5d}".as_bytes(),
        ] {
            assert!(!asks_for_the_end(typed, true), "{typed:?}");
        }
    }
}
