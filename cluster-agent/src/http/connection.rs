//! A connection from the network: who is at its other end, and how long it may be idle.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::server::TlsStream;

use super::server::TlsListener;

/// Nothing moves for so long on a connection of nobody we know: it ends.
const STRANGER_IDLE_MAX: Duration = Duration::from_secs(10);
/// Others may be silent as long as they like (consoles are); so often that is looked at.
const TRUSTED_LOOK: Duration = Duration::from_mins(10);

/// Who is at the other end.
#[derive(Debug, Clone)]
pub struct Peer {
    address: SocketAddr,
    member: bool,
    trusted: Arc<AtomicBool>,
}

impl Peer {
    pub(super) fn new(address: SocketAddr, member: bool) -> Self {
        Self {
            address,
            member,
            trusted: Arc::new(AtomicBool::new(member)),
        }
    }

    /// It showed a certificate of the cluster.
    pub fn is_member(&self) -> bool {
        self.member
    }

    /// Where it calls from.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// It has shown a right token.
    pub fn trust(&self) {
        self.trusted.store(true, Ordering::Relaxed);
    }

    fn is_trusted(&self) -> bool {
        self.trusted.load(Ordering::Relaxed)
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        stream.remote_addr().clone()
    }
}

/// A TLS connection that takes one of a bounded number of seats and ends when it is idle.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    moved: Instant,
    alarm: Pin<Box<Sleep>>,
    _seat: OwnedSemaphorePermit,
}

impl Connection {
    pub(super) fn new(
        stream: TlsStream<TcpStream>,
        peer: Peer,
        seat: OwnedSemaphorePermit,
    ) -> Self {
        let alarm = Box::pin(sleep(STRANGER_IDLE_MAX));
        Self {
            stream,
            peer,
            moved: Instant::now(),
            alarm,
            _seat: seat,
        }
    }

    pub(super) fn peer(&self) -> Peer {
        self.peer.clone()
    }

    /// Something moved, or nothing did for too long.
    fn watch<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.moved = Instant::now();
            return polled;
        }
        while self.alarm.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            let next = if self.peer.is_trusted() {
                now + TRUSTED_LOOK
            } else {
                self.moved + STRANGER_IDLE_MAX
            };
            if now >= next {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.alarm.as_mut().reset(next);
        }
        Poll::Pending
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.watch(polled, context)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(polled, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
