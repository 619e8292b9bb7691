//! The control API: HTTP/1.1 and JSON on a Unix socket, served by one small thread that is
//! started after the guest.

mod body;
mod openapi;
mod routes;

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::sync::{Semaphore, oneshot};

use crate::guest::Guest;
use crate::socket::SocketPath;
pub use body::Body;
pub use openapi::document;

/// Requests under way at once; more wait.
const CONNECTIONS_MAX: usize = 32;
/// A client has so long to send its request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Answers that are under way when the process ends are written out within this.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// Threads for requests that wait for the guest to stand still: as many as there can be requests,
/// so that nobody who asks for the end waits for those who wait for the storage.
const BLOCKING_MAX: usize = CONNECTIONS_MAX;
const STACK_BYTES: usize = 256 << 10;

/// Why there is no API.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on the API socket {}: {source}; choose another path, or stop the guest \
     that uses it",
    path.display()
)]
pub struct ListenError {
    path: PathBuf,
    source: io::Error,
}

/// The socket of the API, bound; requests wait until [`Door::serve`]. Dropping it removes the
/// socket and writes out the answers that are under way.
pub struct Door {
    listener: UnixListener,
    socket: SocketPath,
    serving: Option<Serving>,
}

/// The thread that answers.
struct Serving {
    close: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Door {
    /// Take the socket.
    pub fn open(path: &Path) -> Result<Self, ListenError> {
        let wrap = |source| ListenError {
            path: path.to_owned(),
            source,
        };
        let (listener, socket) = SocketPath::listen(path).map_err(wrap)?;
        listener.set_nonblocking(true).map_err(wrap)?;
        Ok(Self {
            listener,
            socket,
            serving: None,
        })
    }

    /// Answer requests about `guest` from now on.
    pub fn serve(&mut self, guest: Arc<Guest>) -> io::Result<()> {
        let listener = self.listener.try_clone()?;
        let (close, closing) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("api".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                if let Err(error) = run(listener, &guest, closing) {
                    tracing::warn!(%error, "the control API has ended");
                }
            })?;
        self.socket.belongs_to_a_guest();
        self.serving = Some(Serving { close, thread });
        Ok(())
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.socket.leave();
        if let Some(Serving { close, thread }) = self.serving.take() {
            // Fails only when the thread has ended by itself.
            let _ = close.send(());
            let _ = thread.join();
        }
    }
}

fn run(
    listener: UnixListener,
    guest: &Arc<Guest>,
    mut closing: oneshot::Receiver<()>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(BLOCKING_MAX)
        .thread_stack_size(STACK_BYTES)
        .build()?;
    let served = runtime.block_on(async {
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let answers = GracefulShutdown::new();
        tokio::select! {
            failed = accept(&listener, guest, &answers) => return failed,
            _ = &mut closing => {}
        }
        // Whoever does not read its answer gets none.
        let _ = tokio::time::timeout(CLOSE_LIMIT, answers.shutdown()).await;
        Ok(())
    });
    // A request may be waiting for the guest to stand still, which nobody waits for any more.
    runtime.shutdown_background();
    served
}

/// Answer whoever comes; ends only when that fails.
async fn accept(
    listener: &tokio::net::UnixListener,
    guest: &Arc<Guest>,
    answers: &GracefulShutdown,
) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else {
            return Ok(());
        };
        let (stream, _) = listener.accept().await?;
        let guest = guest.clone();
        let service = service_fn(move |request| answer(request, guest.clone()));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .serve_connection(TokioIo::new(stream), service);
        let connection = answers.watch(connection);
        tokio::spawn(async move {
            // A client that goes away in the middle concerns nobody.
            let _ = connection.await;
            drop(place);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    guest: Arc<Guest>,
) -> Result<Response<Body>, Infallible> {
    Ok(routes::answer(request, guest).await)
}
