//! The routes about consoles.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::upgrade::OnUpgrade;
use hyper::{StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::UnixStream;
use tracing::debug;

use super::PROTOCOL;
use crate::api::answer::Refused;
use crate::api::shared::Api;

/// What people and scripts may ask.
///
/// `GET /v1/guests/{guest}/console` with `Connection: upgrade` and `Upgrade: godwit-console`
/// answers 101 and carries the console's bytes from then on, first its last 16 KiB.
pub fn public() -> Router<Arc<Api>> {
    Router::new().route("/v1/guests/{guest}/console", get(console))
}

/// What members may ask of each other besides.
pub fn member() -> Router<Arc<Api>> {
    Router::new().route("/member/guests/{guest}/console", get(console_here))
}

/// From wherever the guest is.
async fn console(
    State(api): State<Arc<Api>>,
    Path(guest): Path<String>,
    request: Request,
) -> Result<Response, Refused> {
    let viewer = upgrade_of(request)?;
    let host = api.host_of(&guest).await?;
    if host == api.me {
        let console = open(&api, &guest).await?;
        return Ok(join(viewer, console));
    }
    let path = format!("/member/guests/{guest}/console");
    let console = api.member_of(&host)?.upgrade(&path, PROTOCOL).await?;
    Ok(join(viewer, console))
}

/// Only from this host: a guest that moves meanwhile sends nobody in circles.
async fn console_here(
    State(api): State<Arc<Api>>,
    Path(guest): Path<String>,
    request: Request,
) -> Result<Response, Refused> {
    let viewer = upgrade_of(request)?;
    let console = open(&api, &guest).await?;
    Ok(join(viewer, console))
}

fn upgrade_of(mut request: Request) -> Result<OnUpgrade, Refused> {
    let asked = request.headers().get(header::UPGRADE);
    let asked = asked.is_some_and(|protocol| protocol == PROTOCOL);
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    upgrade.filter(|_| asked).ok_or_else(|| {
        let why =
            format!("a console needs a connection upgraded to {PROTOCOL}; use: godwit console");
        Refused(StatusCode::UPGRADE_REQUIRED, why)
    })
}

async fn open(api: &Api, guest: &str) -> Result<UnixStream, Refused> {
    let socket = api.host.console_socket(guest);
    UnixStream::connect(&socket).await.map_err(|error| {
        let why = format!(
            "{guest} has no console on {} ({error}); it may just be starting, stopping or moving: \
             try again, and see: godwit guests",
            api.me
        );
        Refused(StatusCode::CONFLICT, why)
    })
}

/// Carry bytes both ways once the answer is out; ends when either side does.
fn join(
    viewer: OnUpgrade,
    mut console: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Response {
    tokio::spawn(async move {
        let carried = match viewer.await {
            Ok(viewer) => copy_bidirectional(&mut TokioIo::new(viewer), &mut console)
                .await
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        // Whoever watched sees the end of the stream.
        debug!(?carried, "a console is closed");
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, PROTOCOL)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::http::client::{CallError, Client, Endpoint};
    use crate::http::server::bind_unix;

    /// Shouts back what it hears, twice; then hangs up.
    async fn shout(request: Request) -> Result<Response, Refused> {
        let viewer = upgrade_of(request)?;
        let (mut guest, console) = tokio::io::duplex(64);
        tokio::spawn(async move {
            for _ in 0..2 {
                let byte = guest.read_u8().await.unwrap();
                guest.write_u8(byte.to_ascii_uppercase()).await.unwrap();
            }
        });
        Ok(join(viewer, console))
    }

    #[tokio::test]
    async fn bytes_go_both_ways_until_one_side_ends() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("agent.sock");
        let app = Router::new().route("/console", get(shout));
        tokio::spawn(axum::serve(bind_unix(&path).unwrap(), app).into_future());
        let client = Client::new(Endpoint::Unix(path), Duration::from_secs(20));
        let mut console = client.upgrade("/console", PROTOCOL).await.unwrap();
        for byte in *b"ab" {
            console.write_u8(byte).await.unwrap();
            assert_eq!(console.read_u8().await.unwrap(), byte.to_ascii_uppercase());
        }
        assert_eq!(console.read(&mut [0]).await.unwrap(), 0, "the end is seen");
        let other = client.upgrade("/console", "websocket").await;
        assert!(matches!(other, Err(CallError::Refused { status, .. })
            if status == StatusCode::UPGRADE_REQUIRED));
    }
}
