//! The sockets on which an agent answers.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use rustix::net::sockopt;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use super::connection::{Connection, Peer};

/// Connections that may be in the middle of their TLS handshake at once.
const HANDSHAKES_MAX: usize = 64;
/// A peer that has not finished its handshake by then is dropped.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// A connection on which nothing moves is asked after, so often.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(20);
/// Connections of members at once.
const MEMBERS_MAX: usize = 1024;
/// Connections of everybody else at once; they take no member's place.
const OPERATORS_MAX: usize = 128;

/// Accepts TLS connections. A slow or hostile handshake delays nobody else's, and strangers
/// leave room for members.
#[derive(Debug)]
pub struct TlsListener {
    ready: mpsc::Receiver<Connection>,
    local: SocketAddr,
}

impl TlsListener {
    /// Listen on `address`.
    pub async fn bind(address: SocketAddr, config: Arc<ServerConfig>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let local = listener.local_addr()?;
        let (done, ready) = mpsc::channel(HANDSHAKES_MAX);
        tokio::spawn(accept_all(listener, TlsAcceptor::from(config), done));
        Ok(Self { ready, local })
    }
}

async fn accept_all(
    mut listener: TcpListener,
    acceptor: TlsAcceptor,
    done: mpsc::Sender<Connection>,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let seats = Seats::default();
    while let Ok(place) = places.clone().acquire_owned().await {
        let (socket, peer) = Listener::accept(&mut listener).await;
        if done.is_closed() {
            return;
        }
        let (acceptor, done, seats) = (acceptor.clone(), done.clone(), seats.clone());
        tokio::spawn(async move {
            let _place = place;
            let _ = socket.set_nodelay(true);
            // The kernel notices peers that died without a word.
            let _ = sockopt::set_socket_keepalive(&socket, true);
            let _ = sockopt::set_tcp_keepidle(&socket, KEEPALIVE_AFTER);
            let _ = sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_AFTER);
            match tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(socket)).await {
                Ok(Ok(stream)) => {
                    if let Some(connection) = seats.take(stream, peer) {
                        // Fails only when the server is going down.
                        let _ = done.send(connection).await;
                    } else {
                        debug!(%peer, "dropped a connection: there are too many");
                    }
                }
                Ok(Err(error)) => debug!(%peer, %error, "refused a connection"),
                Err(_) => debug!(%peer, "dropped a connection that did not finish its handshake"),
            }
        });
    }
}

#[derive(Debug, Clone)]
struct Seats {
    members: Arc<Semaphore>,
    operators: Arc<Semaphore>,
}

impl Default for Seats {
    fn default() -> Self {
        Self {
            members: Arc::new(Semaphore::new(MEMBERS_MAX)),
            operators: Arc::new(Semaphore::new(OPERATORS_MAX)),
        }
    }
}

impl Seats {
    fn take(&self, stream: TlsStream<TcpStream>, address: SocketAddr) -> Option<Connection> {
        // The handshake has held any certificate against the cluster's authority.
        let member = stream.get_ref().1.peer_certificates().is_some();
        let seats = if member {
            &self.members
        } else {
            &self.operators
        };
        let seat = seats.clone().try_acquire_owned().ok()?;
        Some(Connection::new(stream, Peer::new(address, member), seat))
    }
}

impl Listener for TlsListener {
    type Io = Connection;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => {
                let peer = connection.peer();
                (connection, peer)
            }
            // The accepting task lives as long as the runtime.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(Peer::new(self.local, true))
    }
}

/// Listen on a Unix socket that only its owner (root, as a rule) may use. A socket that a
/// dead process left behind is replaced; a living one is not.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another agent answers on this socket",
        ));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use axum::routing::post;
    use axum::{Json, Router};
    use hyper::{Method, StatusCode};
    use shared_storage::trust::Authority;
    use shared_storage::trust::tls::MutualTls;

    use super::*;
    use crate::http::client::{CallError, Client, Endpoint};

    const LIMIT: Duration = Duration::from_secs(20);

    fn api() -> Router {
        Router::new().route(
            "/double",
            post(|Json(n): Json<u64>| async move { Json(2 * n) }),
        )
    }

    fn member(home: &Path, cluster: &str) -> MutualTls {
        let trust = home.join(cluster);
        let identity = trust.join("host");
        let authority = Authority::open_or_create(&trust).unwrap();
        authority.mint("host").unwrap().write(&identity).unwrap();
        MutualTls::from_dir(&identity).unwrap()
    }

    #[tokio::test]
    async fn members_call_each_other_and_foreigners_get_nothing() {
        let home = tempfile::tempdir().unwrap();
        let ours = member(home.path(), "ours");
        let foreign = member(home.path(), "foreign");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = TlsListener::bind(any, ours.server).await.unwrap();
        let address = Listener::local_addr(&listener).unwrap().address();
        tokio::spawn(axum::serve(listener, api()).into_future());

        let call = |tls| async move {
            let client = Client::new(Endpoint::Member { address, tls }, LIMIT);
            client.call::<u64>(Method::POST, "/double", Some(&21)).await
        };
        assert_eq!(call(ours.client).await.unwrap(), 42);
        assert!(matches!(
            call(foreign.client).await,
            Err(CallError::Unreachable { .. })
        ));
    }

    #[tokio::test]
    async fn a_unix_socket_serves_many_calls_and_says_why_it_refuses() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("agent.sock");
        let listener = bind_unix(&path).unwrap();
        tokio::spawn(axum::serve(listener, api()).into_future());
        let client = Client::new(Endpoint::Unix(path.clone()), LIMIT);
        for n in 0..3u64 {
            let answer: u64 = client
                .call(Method::POST, "/double", Some(&n))
                .await
                .unwrap();
            assert_eq!(answer, 2 * n);
        }
        let refused = client
            .call::<u64>(Method::POST, "/double", Some(&"x"))
            .await;
        assert!(matches!(refused, Err(CallError::Refused { status, .. })
            if status == StatusCode::UNPROCESSABLE_ENTITY));
        assert_eq!(
            bind_unix(&path).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
    }
}
