//! A TCP link of its own between two processes on this machine, that can be cut: a connection at a
//! time, at a moment or after so many bytes.
//!
//! Connections are numbered in the order in which they are made.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

const BUFFER_BYTES: usize = 64 << 10;

/// Where a link is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// This connection.
    pub connection: usize,
    /// When it has carried so many bytes from whoever made it.
    pub after_bytes: u64,
}

/// A link. It lasts as long as its connections do; none is made once this is dropped.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    cut: Option<Cut>,
    cut_at: Option<Instant>,
    is_over: bool,
    connections: Vec<Connection>,
}

/// Both sockets of a connection until it is cut or one side is gone, and what it has carried.
#[derive(Debug)]
struct Connection {
    ends: Vec<TcpStream>,
    is_cut: bool,
    carried: u64,
}

impl Link {
    /// A link to whoever listens at `to`, cut where `cut` says.
    pub fn to(to: SocketAddr, cut: Option<Cut>) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State {
            cut,
            ..State::default()
        }));
        let shared = state.clone();
        thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                if lock(&shared).is_over || carry(&shared, near, to).is_err() {
                    return;
                }
            }
        });
        Ok(Self { address, state })
    }

    /// Where its near end is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cut this connection now; says whether there was one.
    pub fn cut(&self, connection: usize) -> bool {
        lock(&self.state).cut(connection)
    }

    /// When it was cut, if it was.
    pub fn cut_at(&self) -> Option<Instant> {
        lock(&self.state).cut_at
    }

    /// What each connection has carried from whoever made it.
    pub fn carried(&self) -> Vec<u64> {
        let state = lock(&self.state);
        state.connections.iter().map(|one| one.carried).collect()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        lock(&self.state).is_over = true;
        // Wakes the listener up; it may be gone already.
        drop(TcpStream::connect(self.address));
    }
}

impl State {
    fn cut(&mut self, connection: usize) -> bool {
        let Some(Connection { ends, is_cut, .. }) = self.connections.get_mut(connection) else {
            return false;
        };
        *is_cut = true;
        self.cut_at.get_or_insert_with(Instant::now);
        // Nobody else keeps them open any longer: they are reset by what was not read of them.
        for end in ends.drain(..) {
            // Its peer may have closed it already.
            let _ = end.shutdown(Shutdown::Both);
        }
        true
    }

    fn carried(&mut self, connection: usize, bytes: usize) {
        self.connections[connection].carried += bytes as u64;
        if self.room(connection, 1) == 0 {
            self.cut(connection);
        }
    }

    /// One side is gone: nobody else keeps its sockets open, so that the other side hears of it.
    fn gone(&mut self, connection: usize) {
        self.connections[connection].ends.clear();
    }

    /// How much of `bytes` more this connection carries before it is cut.
    fn room(&self, connection: usize, bytes: usize) -> usize {
        let Connection {
            is_cut, carried, ..
        } = &self.connections[connection];
        match self.cut {
            _ if *is_cut => 0,
            Some(cut) if cut.connection == connection => {
                bytes.min(cut.after_bytes.saturating_sub(*carried) as usize)
            }
            _ => bytes,
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Carry a new connection on, in both directions.
fn carry(state: &Arc<Mutex<State>>, near: TcpStream, to: SocketAddr) -> io::Result<()> {
    let far = TcpStream::connect(to)?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ends = vec![near.try_clone()?, far.try_clone()?];
    let mut locked = lock(state);
    let number = locked.connections.len();
    locked.connections.push(Connection {
        ends,
        is_cut: false,
        carried: 0,
    });
    if locked.room(number, 1) == 0 {
        locked.cut(number);
    }
    drop(locked);
    let (back, forth) = (far.try_clone()?, near.try_clone()?);
    let counting = state.clone();
    thread::spawn(move || {
        let room = |bytes| lock(&counting).room(number, bytes);
        let carried = |bytes| lock(&counting).carried(number, bytes);
        pass_on(near, far, room, carried);
        lock(&counting).gone(number);
    });
    let state = state.clone();
    thread::spawn(move || {
        let room = |bytes| {
            let is_cut = lock(&state).connections[number].is_cut;
            if is_cut { 0 } else { bytes }
        };
        pass_on(back, forth, room, |_| ());
        lock(&state).gone(number);
    });
    Ok(())
}

/// Copy until either side is gone or there is no room for more. What is left unread then resets the
/// connection, as its loss does.
fn pass_on(
    mut from: TcpStream,
    mut to: TcpStream,
    room: impl Fn(usize) -> usize,
    carried: impl Fn(usize),
) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(bytes @ 1..) = from.read(&mut buffer) {
        let bytes = room(bytes);
        if bytes == 0 || to.write_all(&buffer[..bytes]).is_err() {
            break;
        }
        carried(bytes);
    }
    // Either may be closed already; what has arrived is read all the same.
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[test]
    fn it_carries_what_is_said_until_it_is_cut() {
        let (listener, address) = listener();
        let cut = Cut {
            connection: 1,
            after_bytes: 3,
        };
        let link = Link::to(address, Some(cut)).unwrap();
        let mut first = TcpStream::connect(link.address()).unwrap();
        let mut there = listener.accept().unwrap().0;
        first.write_all(b"hello").unwrap();
        let mut heard = [0; 5];
        there.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
        there.write_all(b"world").unwrap();
        first.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"world");
        let mut second = TcpStream::connect(link.address()).unwrap();
        let mut there = listener.accept().unwrap().0;
        second.write_all(b"hello").unwrap();
        let mut heard = Vec::new();
        // What was on its way when it was cut may be lost, but no more than was to come arrives.
        let _ = there.read_to_end(&mut heard);
        assert!(b"hel".starts_with(&heard), "{heard:?}");
        assert!(link.cut_at().is_some());
        assert_eq!(link.carried(), [5, 3]);
        assert!(link.cut(0) && !link.cut(2));
        assert_eq!(first.read(&mut [0]).unwrap_or(0), 0);
    }
}
