//! Who comes to the target: a source with its offer, then the data connections that belong to it.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_core::migration::CONNECTIONS_MAX;

use super::MigrationError;
use super::stream::{Security, Stream};
use super::wire::{self, Hello, Kind, Token};

/// The data connections must follow the offer within this.
const JOIN_LIMIT: Duration = Duration::from_secs(20);

/// Where a guest is waited for.
pub struct Listening<'a> {
    /// Here.
    pub listener: &'a TcpListener,
    /// From these.
    pub security: &'a Security,
    /// Until then; for ever without.
    pub until: Option<Instant>,
    /// So long is listened to whoever comes in time, until he has said who he is.
    pub patience: Duration,
}

/// A connection that says nothing sensible is dropped, and the next one listened to.
pub(super) fn take_offer(
    Listening {
        listener,
        security,
        until,
        patience,
    }: &Listening<'_>,
) -> Result<(Stream, Hello), MigrationError> {
    let failed = || MigrationError::connection("accept", &"a connection");
    listener.set_nonblocking(true).map_err(failed())?;
    loop {
        wait_for_first_caller(listener, *until).map_err(failed())?;
        let (socket, peer) = match listener.accept() {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            other => other.map_err(failed())?,
        };
        match read_offer(socket, security, Instant::now() + *patience) {
            Ok(offer) => return Ok(offer),
            Err(error) => tracing::warn!(%peer, %error, "refused a connection"),
        }
    }
}

fn read_offer(
    socket: TcpStream,
    security: &Security,
    until: Instant,
) -> std::io::Result<(Stream, Hello)> {
    let mut stream = security.accept(socket, until)?;
    let offer = wire::receive(&mut stream).and_then(|(header, payload)| {
        if header.kind != Kind::Hello {
            return Err(std::io::Error::other(format!(
                "{:?} came first",
                header.kind
            )));
        }
        wire::decode::<Hello>(&payload)
    });
    match offer {
        Ok(hello) => {
            stream.trust()?;
            Ok((stream, hello))
        }
        Err(error) => {
            let _ = wire::send(&mut stream, Kind::Refuse, 0, &error.to_string());
            Err(error)
        }
    }
}

/// All data connections of the migration that `hello` offered.
pub(super) fn join_all(
    Listening {
        listener,
        security,
        patience,
        ..
    }: &Listening<'_>,
    hello: &Hello,
    control: &Stream,
) -> Result<Vec<Stream>, MigrationError> {
    let wanted = hello.connections.clamp(1, CONNECTIONS_MAX) as usize;
    let give_up = Instant::now() + JOIN_LIMIT;
    let mut data = Vec::new();
    let failed = || MigrationError::connection("accept", &"a connection");
    while data.len() < wanted {
        if Instant::now() > give_up {
            let why = format!("{} of {wanted} data connections came", data.len());
            return Err(MigrationError::Protocol(why));
        }
        wait_for_caller(listener, control, give_up)
            .map_err(MigrationError::connection("hear from", &"the source"))?;
        let (socket, peer) = match listener.accept() {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            other => other.map_err(failed())?,
        };
        let until = give_up.min(Instant::now() + *patience);
        match read_join(socket, security, until, &hello.token) {
            Ok(stream) => data.push(stream),
            Err(error) => tracing::warn!(%peer, %error, "refused a data connection"),
        }
    }
    Ok(data)
}

/// Until somebody calls; an error when it is too late for that.
fn wait_for_first_caller(listener: &TcpListener, until: Option<Instant>) -> std::io::Result<()> {
    let too_late = || std::io::Error::new(std::io::ErrorKind::TimedOut, "no guest came in time");
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    // Whoever calls then is one of those who keep others from being heard.
    if left.is_some_and(|left| left.is_zero()) {
        return Err(too_late());
    }
    let left = left.map(Timespec::try_from).transpose();
    let left = left.map_err(std::io::Error::other)?;
    match poll(&mut [PollFd::new(listener, PollFlags::IN)], left.as_ref()) {
        Ok(0) => Err(too_late()),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Until somebody calls or it is time to give up; an error when the source hangs up.
fn wait_for_caller(
    listener: &TcpListener,
    control: &Stream,
    give_up: Instant,
) -> std::io::Result<()> {
    let left = give_up.saturating_duration_since(Instant::now());
    let left = Timespec::try_from(left).map_err(std::io::Error::other)?;
    let mut polls = [
        PollFd::new(listener, PollFlags::IN),
        PollFd::new(control, PollFlags::RDHUP),
    ];
    match poll(&mut polls, Some(&left)) {
        Ok(_) if polls[1].revents().is_empty() => Ok(()),
        Ok(_) => Err(std::io::ErrorKind::UnexpectedEof.into()),
        Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn read_join(
    socket: TcpStream,
    security: &Security,
    until: Instant,
    token: &Token,
) -> std::io::Result<Stream> {
    let mut stream = security.accept(socket, until)?;
    let (header, payload) = wire::receive(&mut stream)?;
    if header.kind != Kind::Join || wire::decode::<Token>(&payload)? != *token {
        return Err(std::io::Error::other(
            "it does not belong to this migration",
        ));
    }
    stream.trust()?;
    Ok(stream)
}
