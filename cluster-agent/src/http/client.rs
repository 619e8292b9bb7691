//! Calls to an agent or a VMM.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::http::request;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shared_storage::trust::MEMBER_NAME;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

use super::BODY_BYTES_MAX;

/// Where an API listens.
#[derive(Debug, Clone)]
pub enum Endpoint {
    /// A process of this host.
    Unix(PathBuf),
    /// A member of the cluster, over mutual TLS.
    Member {
        /// Its address and port.
        address: SocketAddr,
        /// Our side of the TLS.
        tls: Arc<ClientConfig>,
    },
    /// An agent, for an operator who is on no host.
    Agent {
        /// Its host and port, as [`TcpStream::connect`] takes them.
        server: String,
        /// What it is known by.
        tls: Arc<ClientConfig>,
        /// What the operator shows.
        token: String,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Member { address, .. } => write!(f, "{address}"),
            Self::Agent { server, .. } => f.write_str(server),
        }
    }
}

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody answers there.
    #[error("cannot reach {endpoint}: {source}")]
    Unreachable {
        /// Whom we called.
        endpoint: String,
        /// Over a socket of this host.
        is_local: bool,
        /// What the system said.
        source: io::Error,
    },
    /// The answer did not come in time.
    #[error("{endpoint} did not answer within {} ms", limit.as_millis())]
    TimedOut {
        /// Whom we called.
        endpoint: String,
        /// How long we waited.
        limit: Duration,
    },
    /// The other side refuses; its own words.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// Why, as it said.
        message: String,
    },
    /// The answer does not say what it should.
    #[error("{endpoint} gave an answer that is not understood: {detail}")]
    Malformed {
        /// Whom we called.
        endpoint: String,
        /// What is wrong with it.
        detail: String,
    },
}

/// The body of every refusal: one line for a person.
#[derive(Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// What was refused, why, and what helps.
    pub error: String,
}

/// One kept-alive connection to an API; made when first needed and again when it breaks.
#[derive(Debug)]
pub struct Client {
    endpoint: Endpoint,
    limit: Duration,
    connection: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Client {
    /// A client for `endpoint` whose calls take `limit` at most.
    pub fn new(endpoint: Endpoint, limit: Duration) -> Self {
        Self {
            endpoint,
            limit,
            connection: Mutex::new(None),
        }
    }

    /// Call and decode the JSON answer.
    pub async fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<A, CallError> {
        let bytes = self.call_raw(method, path, body).await?;
        // An empty body is the JSON of "nothing to say".
        let json: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(json).map_err(|error| self.malformed(&error))
    }

    /// Call and return the body of the answer as it is.
    pub async fn call_raw(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<Bytes, CallError> {
        let work = async {
            let response = self.send(method, path, body).await?;
            if !response.status().is_success() {
                return Err(self.refusal(response).await);
            }
            let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect();
            let body = body.await.map_err(|error| self.malformed(&error))?;
            Ok(body.to_bytes())
        };
        // A call given up drops its connection with it, so that a late answer is nobody's.
        tokio::time::timeout(self.limit, work)
            .await
            .map_err(|_| self.timed_out())?
    }

    /// Make the connection if there is none, within `limit` instead of what a call may take: on a
    /// host that has no processor to spare, greeting each other takes longest, and to give it up
    /// half-way and begin anew would only cost more of what is short.
    pub async fn ready(&self, limit: Duration) -> Result<(), CallError> {
        let work = async {
            let mut connection = self.connection.lock().await;
            let sender = match still_good(connection.take()).await {
                Some(kept) => kept,
                None => self.connect().await.map_err(|e| self.unreachable(e))?,
            };
            *connection = Some(sender);
            Ok(())
        };
        tokio::time::timeout(limit, work)
            .await
            .map_err(|_| CallError::TimedOut {
                endpoint: self.endpoint.to_string(),
                limit,
            })?
    }

    /// Open a stream of server-sent events; its lines are the caller's to read.
    /// The one after `last_id` comes first, if that is named.
    pub async fn stream(&self, path: &str, last_id: Option<&str>) -> Result<Incoming, CallError> {
        let mut sender = self.connect().await.map_err(|e| self.unreachable(e))?;
        let mut request = self.request(path);
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        let request = request
            .body(Full::default())
            .map_err(|error| self.malformed(&error))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.unreachable(io::Error::other(error)))?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        Err(self.refusal(response).await)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<Response<Incoming>, CallError> {
        let bytes = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| self.malformed(&error))?,
            None => Vec::new(),
        };
        let request = self
            .request(path)
            .method(method)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(bytes)))
            .map_err(|error| self.malformed(&error))?;
        let mut connection = self.connection.lock().await;
        let mut sender = match still_good(connection.take()).await {
            Some(kept) => kept,
            None => self.connect().await.map_err(|e| self.unreachable(e))?,
        };
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.unreachable(io::Error::other(error)))?;
        *connection = Some(sender);
        Ok(response)
    }

    /// A connection that carries bytes in both directions once the other side has agreed to
    /// `protocol`. Nobody else uses it; it lasts as long as both want.
    pub async fn upgrade(
        &self,
        path: &str,
        protocol: &'static str,
    ) -> Result<TokioIo<Upgraded>, CallError> {
        let work = async {
            let mut sender = self.connect().await.map_err(|e| self.unreachable(e))?;
            let request = self
                .request(path)
                .header(header::CONNECTION, "upgrade")
                .header(header::UPGRADE, protocol)
                .body(Full::default())
                .map_err(|error| self.malformed(&error))?;
            let response = sender
                .send_request(request)
                .await
                .map_err(|error| self.unreachable(io::Error::other(error)))?;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                let upgraded = hyper::upgrade::on(response).await;
                return upgraded
                    .map(TokioIo::new)
                    .map_err(|error| self.malformed(&error));
            }
            Err(self.refusal(response).await)
        };
        tokio::time::timeout(self.limit, work)
            .await
            .map_err(|_| self.timed_out())?
    }

    async fn connect(&self) -> io::Result<SendRequest<Full<Bytes>>> {
        match &self.endpoint {
            Endpoint::Unix(path) => handshake(UnixStream::connect(path).await?).await,
            Endpoint::Member { address, tls } => {
                secure(TcpStream::connect(address).await?, tls).await
            }
            Endpoint::Agent { server, tls, .. } => {
                secure(TcpStream::connect(server).await?, tls).await
            }
        }
    }

    fn request(&self, path: &str) -> request::Builder {
        let request = Request::builder()
            .uri(path)
            .header(header::HOST, MEMBER_NAME);
        match &self.endpoint {
            Endpoint::Agent { token, .. } => {
                request.header(header::AUTHORIZATION, format!("Bearer {token}"))
            }
            _ => request,
        }
    }

    /// What an answer that is none says.
    async fn refusal(&self, response: Response<Incoming>) -> CallError {
        let status = response.status();
        match Limited::new(response.into_body(), BODY_BYTES_MAX)
            .collect()
            .await
        {
            Ok(body) => refused(status, &body.to_bytes()),
            Err(error) => self.malformed(&error),
        }
    }

    fn timed_out(&self) -> CallError {
        CallError::TimedOut {
            endpoint: self.endpoint.to_string(),
            limit: self.limit,
        }
    }

    fn unreachable(&self, source: io::Error) -> CallError {
        CallError::Unreachable {
            endpoint: self.endpoint.to_string(),
            is_local: matches!(self.endpoint, Endpoint::Unix(_)),
            source,
        }
    }

    fn malformed(&self, detail: &impl ToString) -> CallError {
        CallError::Malformed {
            endpoint: self.endpoint.to_string(),
            detail: detail.to_string(),
        }
    }
}

async fn still_good(kept: Option<SendRequest<Full<Bytes>>>) -> Option<SendRequest<Full<Bytes>>> {
    let mut kept = kept?;
    kept.ready().await.is_ok().then_some(kept)
}

async fn secure(
    socket: TcpStream,
    tls: &Arc<ClientConfig>,
) -> io::Result<SendRequest<Full<Bytes>>> {
    socket.set_nodelay(true)?;
    let name = ServerName::try_from(MEMBER_NAME).map_err(io::Error::other)?;
    let connector = TlsConnector::from(tls.clone());
    handshake(connector.connect(name, socket).await?).await
}

async fn handshake(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> io::Result<SendRequest<Full<Bytes>>> {
    let (sender, connection) = http1::handshake(TokioIo::new(socket))
        .await
        .map_err(io::Error::other)?;
    // Ends with the connection; its errors reach the sender.
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

fn refused(status: StatusCode, body: &[u8]) -> CallError {
    let message = serde_json::from_slice::<Refusal>(body).map_or_else(
        |_| {
            format!(
                "refused with status {status}: {}",
                String::from_utf8_lossy(body)
            )
        },
        |refusal| refusal.error,
    );
    CallError::Refused { status, message }
}
