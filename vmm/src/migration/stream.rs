//! Connections of a migration: plain TCP, or mutual TLS.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{
    set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl,
    set_tcp_user_timeout,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use shared_storage::trust::tls::MutualTls;
use shared_storage::trust::{MEMBER_NAME, TrustError};
use vm_memory::{VolatileSlice, bitmap::BitmapSlice};

use super::lifeline::Lifeline;

/// Connecting to one address takes no longer.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Nobody is trusted with more of our time, all its bytes together, before it is known.
pub const STRANGER_MAX: Duration = Duration::from_secs(10);
/// A peer whose kernel does not answer for so long is gone (idle, then probes) ...
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// ... and one that lives but says nothing for so long is stuck. A connection is silent while
/// a round of memory is under way on others, however long that takes.
const SILENCE_MAX: Duration = Duration::from_hours(1);
/// One that does not take what we send for so long is stuck, too.
const BLOCKED_MAX: Duration = Duration::from_secs(10);
/// Most buffers of one vectored system call (`IOV_MAX`).
const BUFFERS_MAX: usize = 1024;
/// Pages are copied in pieces of this size where TLS has to see them.
const COPY_BYTES: usize = 64 << 10;

/// One connection.
pub enum Stream {
    /// On a trusted link.
    Plain(Socket),
    /// We connected.
    TlsClient(Box<StreamOwned<ClientConnection, Socket>>),
    /// We were connected to.
    TlsServer(Box<StreamOwned<ServerConnection, Socket>>),
}

/// A socket that a stranger may keep us waiting at until some moment, however few bytes at a time
/// it sends.
pub struct Socket {
    tcp: TcpStream,
    until: Option<Instant>,
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Some(until) = self.until {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.tcp.set_read_timeout(Some(left))?;
        }
        self.tcp.read(into)
    }
}

impl Write for Socket {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.tcp.write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

/// The certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0}; name a directory with authority.pem, certificate.pem and key.pem, as an agent keeps one \
     for its host: identity/ in its --run-dir"
)]
pub struct SecurityError(#[source] TrustError);

/// How connections are made and taken.
#[derive(Clone, Default)]
pub struct Security(Option<MutualTls>);

impl Security {
    /// Plain TCP, or mutual TLS with the certificates in `tls_dir`.
    pub fn from_dir(tls_dir: Option<&Path>) -> Result<Self, SecurityError> {
        let tls = tls_dir.map(MutualTls::from_dir).transpose();
        Ok(Self(tls.map_err(SecurityError)?))
    }

    /// Connect to `to` (`HOST:PORT`). Until [`Stream::trust`] it has to answer soon.
    pub fn connect(&self, to: &str, lifeline: &Lifeline) -> io::Result<Stream> {
        let tcp = connect(to)?;
        lifeline.hold(&tcp)?;
        let socket = prepare(tcp, Instant::now() + STRANGER_MAX)?;
        let Some(tls) = &self.0 else {
            return Ok(Stream::Plain(socket));
        };
        let name = ServerName::try_from(MEMBER_NAME).map_err(io::Error::other)?;
        let session = ClientConnection::new(tls.client.clone(), name).map_err(io::Error::other)?;
        let mut stream = Box::new(StreamOwned::new(session, socket));
        stream.conn.complete_io(&mut stream.sock)?;
        Ok(Stream::TlsClient(stream))
    }

    /// Take over a connection that was accepted. Before [`Stream::trust`] nothing is waited for
    /// any longer than `until`.
    pub fn accept(&self, tcp: TcpStream, until: Instant) -> io::Result<Stream> {
        let socket = prepare(tcp, until)?;
        let Some(tls) = &self.0 else {
            return Ok(Stream::Plain(socket));
        };
        let session = ServerConnection::new(tls.server.clone()).map_err(io::Error::other)?;
        let mut stream = Box::new(StreamOwned::new(session, socket));
        stream.conn.complete_io(&mut stream.sock)?;
        Ok(Stream::TlsServer(stream))
    }
}

fn connect(to: &str) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::InvalidInput, "it has no address");
    for address in to.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_MAX) {
            Ok(socket) => return Ok(socket),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn prepare(tcp: TcpStream, until: Instant) -> io::Result<Socket> {
    tcp.set_nodelay(true)?;
    set_socket_keepalive(&tcp, true)?;
    set_tcp_keepidle(&tcp, KEEPALIVE)?;
    set_tcp_keepintvl(&tcp, KEEPALIVE)?;
    set_tcp_keepcnt(&tcp, KEEPALIVE_PROBES)?;
    set_tcp_user_timeout(&tcp, BLOCKED_MAX.as_millis() as u32)?;
    tcp.set_write_timeout(Some(BLOCKED_MAX))?;
    Ok(Socket {
        tcp,
        until: Some(until),
    })
}

impl Stream {
    /// It belongs to this migration: from now on it may be silent for as long as its kernel
    /// says that it is there.
    pub fn trust(&mut self) -> io::Result<()> {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::TlsClient(tls) => &mut tls.sock,
            Self::TlsServer(tls) => &mut tls.sock,
        };
        socket.until = None;
        socket.tcp.set_read_timeout(Some(SILENCE_MAX))
    }

    /// Nothing more is waited for than `limit`.
    pub fn hurry(&self, limit: Duration) -> io::Result<()> {
        self.socket().set_read_timeout(Some(limit))
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => &socket.tcp,
            Self::TlsClient(tls) => &tls.sock.tcp,
            Self::TlsServer(tls) => &tls.sock.tcp,
        }
    }

    /// Is there something to hear, be it that nothing will come any more, within `limit`?
    pub fn speaks_within(&self, limit: Duration) -> io::Result<bool> {
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        let mut socket = [PollFd::new(self.socket(), PollFlags::IN)];
        match poll(&mut socket, Some(&limit)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Wait until there is something to hear; an error when one of `others` is lost meanwhile, which
    /// nobody reads from.
    pub fn wait_beside(&self, others: &[Self]) -> io::Result<()> {
        let limit = Timespec::try_from(SILENCE_MAX).map_err(io::Error::other)?;
        let mut sockets = vec![PollFd::new(self.socket(), PollFlags::IN)];
        let others = others.iter().map(Self::socket);
        sockets.extend(others.map(|socket| PollFd::new(socket, PollFlags::RDHUP)));
        match poll(&mut sockets, Some(&limit)) {
            // Whoever has something to say about it is heard first.
            Ok(ready) if ready > 0 && sockets[0].revents().is_empty() => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// End both directions, so that a thread that waits in it wakes up.
    pub fn closer(&self) -> io::Result<TcpStream> {
        self.socket().try_clone()
    }

    /// Send `head` and then the memory in `pages`; without a copy on plain TCP.
    pub fn send_pages<B: BitmapSlice>(
        &mut self,
        head: &[u8],
        pages: &[VolatileSlice<'_, B>],
    ) -> io::Result<()> {
        if let Self::Plain(Socket { tcp, .. }) = self {
            let mut buffers = vec![buffer(head.as_ptr(), head.len())];
            buffers.extend(
                pages
                    .iter()
                    .map(|p| buffer(p.ptr_guard().as_ptr(), p.len())),
            );
            return all_buffers(&mut buffers, |buffers| {
                // SAFETY: every buffer lies in `head` or in guest memory, both of which live
                // through the call; the kernel only reads them.
                unsafe { libc::writev(tcp.as_raw_fd(), buffers.as_ptr(), count(buffers)) }
            });
        }
        self.write_all(head)?;
        let mut copy = vec![0; COPY_BYTES];
        for page in pages {
            let mut at = 0;
            while at < page.len() {
                let part = page.offset(at).map_err(io::Error::other)?;
                let bytes = part.copy_to(&mut copy[..part.len().min(COPY_BYTES)]);
                self.write_all(&copy[..bytes])?;
                at += bytes;
            }
        }
        self.flush()
    }

    /// Fill the memory in `pages`; without a copy on plain TCP.
    pub fn receive_pages<B: BitmapSlice>(
        &mut self,
        pages: &[VolatileSlice<'_, B>],
    ) -> io::Result<()> {
        if let Self::Plain(Socket { tcp, .. }) = self {
            let mut buffers: Vec<_> = pages
                .iter()
                .map(|p| buffer(p.ptr_guard_mut().as_ptr(), p.len()))
                .collect();
            return all_buffers(&mut buffers, |buffers| {
                // SAFETY: every buffer lies in guest memory, which lives through the call and
                // to which no Rust reference exists.
                unsafe { libc::readv(tcp.as_raw_fd(), buffers.as_ptr(), count(buffers)) }
            });
        }
        let mut copy = vec![0; COPY_BYTES];
        for page in pages {
            let mut at = 0;
            while at < page.len() {
                let part = page.offset(at).map_err(io::Error::other)?;
                let bytes = part.len().min(COPY_BYTES);
                self.read_exact(&mut copy[..bytes])?;
                part.copy_from(&copy[..bytes]);
                at += bytes;
            }
        }
        Ok(())
    }
}

fn buffer(start: *const u8, bytes: usize) -> libc::iovec {
    libc::iovec {
        iov_base: start.cast_mut().cast(),
        iov_len: bytes,
    }
}

fn count(buffers: &[libc::iovec]) -> libc::c_int {
    buffers.len().min(BUFFERS_MAX).try_into().unwrap_or(0)
}

/// Repeat a vectored system call until all buffers are done.
fn all_buffers(
    buffers: &mut [libc::iovec],
    call: impl Fn(&[libc::iovec]) -> isize,
) -> io::Result<()> {
    let mut at = 0;
    while at < buffers.len() {
        let some = &buffers[at..(at + BUFFERS_MAX).min(buffers.len())];
        let mut done = match call(some) {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n if n > 0 => n as usize,
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            },
        };
        while at < buffers.len() && done >= buffers[at].iov_len {
            done -= buffers[at].iov_len;
            at += 1;
        }
        if done > 0 {
            let part = &mut buffers[at];
            part.iov_base = part.iov_base.wrapping_byte_add(done);
            part.iov_len -= done;
        }
    }
    Ok(())
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(into),
            Self::TlsClient(tls) => tls.read(into),
            Self::TlsServer(tls) => tls.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(from),
            Self::TlsClient(tls) => tls.write(from),
            Self::TlsServer(tls) => tls.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::TlsClient(tls) => tls.flush(),
            Self::TlsServer(tls) => tls.flush(),
        }
    }
}
