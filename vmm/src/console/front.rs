//! The thread at the front desk: console input, and the signals that end the process.

use std::fs::File;
use std::io::{self, Read};
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
use crate::notice::Notice;

/// Control and ]: ends the guest, as pulling its plug would.
const ESCAPE: u8 = 0x1d;
/// Signals that ask the process to end.
const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
const CHUNK_BYTES: usize = 64;
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
        client: Option<UnixStream>,
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
        let source = self.source().filter(|_| room > 0);
        // SAFETY: `self.wake` is open and stays so for the whole call.
        let wake = unsafe { BorrowedFd::borrow_raw(self.wake.as_raw_fd()) };
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::from_borrowed_fd(wake, PollFlags::IN),
        ];
        fds.extend(source.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            other => other?,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            let mut info = [0; size_of::<libc::signalfd_siginfo>()];
            self.signals.read_exact(&mut info)?;
            self.tell(Notice::Off)?;
        }
        if ready[1] {
            let _ = self.wake.read();
        }
        if ready.get(2) == Some(&true) {
            self.read_input(room)?;
        }
        Ok(())
    }

    fn tell(&self, notice: Notice) -> io::Result<()> {
        let sent = self.notices.send(notice);
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn room(&self) -> usize {
        let plug = self.plug.lock().unwrap_or_else(PoisonError::into_inner);
        plug.as_ref().map_or(0, SerialPort::room)
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        match &self.input {
            Input::None => None,
            Input::Stream { fd, .. } => Some(fd.as_fd()),
            Input::Listener {
                client: Some(client),
                ..
            } => Some(client.as_fd()),
            Input::Listener { listener, .. } => Some(listener.as_fd()),
        }
    }

    fn read_input(&mut self, room: usize) -> io::Result<()> {
        let mut chunk = [0; CHUNK_BYTES];
        let chunk = &mut chunk[..room.min(CHUNK_BYTES)];
        match &mut self.input {
            Input::None => Ok(()),
            Input::Stream { fd, is_terminal } => {
                let is_terminal = *is_terminal;
                let bytes = rustix::io::read(&*fd, &mut *chunk).unwrap_or(0);
                if bytes == 0 {
                    self.input = Input::None;
                } else if is_terminal && chunk[..bytes].contains(&ESCAPE) {
                    return self.tell(Notice::Off);
                }
                self.feed(&chunk[..bytes]);
                Ok(())
            }
            Input::Listener {
                listener,
                sink,
                client,
            } => {
                let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(reader) = client else {
                    let (stream, _) = listener.accept()?;
                    stream.set_nonblocking(true)?;
                    sink.connect(stream.try_clone()?);
                    *client = Some(stream);
                    return Ok(());
                };
                let bytes = match reader.read(chunk) {
                    Ok(bytes) if bytes > 0 => bytes,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    _ => {
                        *client = None;
                        sink.disconnect();
                        return Ok(());
                    }
                };
                drop(sink);
                self.feed(&chunk[..bytes]);
                Ok(())
            }
        }
    }

    /// The chunk was cut to the room there is, and only this thread fills it.
    fn feed(&self, bytes: &[u8]) {
        let plug = self.plug.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(port) = plug.as_ref() {
            port.feed(bytes);
        }
    }
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
