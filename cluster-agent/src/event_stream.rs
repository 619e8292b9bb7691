//! Events as they happen, as server-sent events: `GET /v1/events/stream`.
//!
//! The id of each event tells the last number that its reader has seen of every host, so a
//! reader that comes back with its `Last-Event-ID` misses nothing and gets nothing twice,
//! whichever agent it asks. Events are read from their store when the reader is ready for
//! them: a slow one costs no memory.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::{Bytes, Frame};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE};
use hyper::{HeaderMap, StatusCode};
use serde::Deserialize;
use shared_storage::StateStore;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::api::answer::Refused;
use crate::api::shared::Api;
use crate::api::views::Event;
use crate::history::Tail;

/// Readers at once, on one agent.
const READERS_MAX: usize = 32;
/// Events that may wait for one reader; more stay in their store until it has taken them.
const QUEUE_MAX: usize = 64;
/// The store is looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A reader hears at least a comment so often.
const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// Longest id that is taken back, in bytes: room for a hundred hosts.
const ID_BYTES_MAX: usize = 16 << 10;
/// Most events from before that a new reader is given.
const BEFORE_MAX: usize = 1000;

/// What people and scripts may ask.
pub fn public() -> Router<Arc<Api>> {
    Router::new().route("/v1/events/stream", get(stream))
}

#[derive(Deserialize)]
struct From {
    count: Option<usize>,
}

async fn stream(
    State(api): State<Arc<Api>>,
    Query(from): Query<From>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    static READERS: LazyLock<Arc<Semaphore>> =
        LazyLock::new(|| Arc::new(Semaphore::new(READERS_MAX)));
    let place = READERS.clone().try_acquire_owned().map_err(|_| {
        let why = format!("{READERS_MAX} readers follow this agent's events; ask another agent");
        Refused(StatusCode::SERVICE_UNAVAILABLE, why)
    })?;
    let seen = match headers.get("last-event-id") {
        Some(id) => Some(id.to_str().ok().and_then(parse_id).ok_or_else(|| {
            let why = "this Last-Event-ID is none of ours; leave it out to begin with now";
            Refused(StatusCode::BAD_REQUEST, why.to_owned())
        })?),
        None => None,
    };
    let before = from.count.unwrap_or(0).min(BEFORE_MAX);
    let (queue, waiting) = mpsc::channel(QUEUE_MAX);
    tokio::spawn(follow(api.store.state().clone(), seen, before, queue));
    let body = Body::new(Lines {
        waiting,
        _place: place,
    });
    let headers = [
        (CONTENT_TYPE, "text/event-stream"),
        (CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, body).into_response())
}

/// Ends when its reader has gone.
async fn follow(
    state: Arc<dyn StateStore>,
    seen: Option<BTreeMap<String, u64>>,
    before: usize,
    queue: mpsc::Sender<Bytes>,
) {
    let mut tail = Tail::new(state, seen, before);
    let mut commented = Instant::now();
    while !queue.is_closed() {
        // A store that hangs holds up this reader and nobody else.
        let look = tokio::task::spawn_blocking(move || {
            let new = tail.look();
            (tail, new)
        });
        let Ok((returned, new)) = look.await else {
            return;
        };
        tail = returned;
        for (event, seen) in new {
            if queue.send(lines(&event, &seen)).await.is_err() {
                return;
            }
            commented = Instant::now();
        }
        if commented.elapsed() >= COMMENT_EVERY {
            commented = Instant::now();
            if queue.send(Bytes::from_static(b": here\n\n")).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn lines(event: &Event, seen: &BTreeMap<String, u64>) -> Bytes {
    let json = serde_json::to_string(event).unwrap_or_default();
    Bytes::from(format!("id: {}\ndata: {json}\n\n", id(seen)))
}

/// `a=12,b=7`.
fn id(seen: &BTreeMap<String, u64>) -> String {
    seen.iter().fold(String::new(), |mut id, (host, number)| {
        let comma = if id.is_empty() { "" } else { "," };
        // Writing to a string cannot fail.
        let _ = write!(id, "{comma}{host}={number}");
        id
    })
}

fn parse_id(id: &str) -> Option<BTreeMap<String, u64>> {
    if id.len() > ID_BYTES_MAX {
        return None;
    }
    id.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (host, number) = part.split_once('=')?;
            Some((host.to_owned(), number.parse().ok()?))
        })
        .collect()
}

/// The body of the answer; ends when nothing comes any more.
struct Lines {
    waiting: mpsc::Receiver<Bytes>,
    _place: OwnedSemaphorePermit,
}

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.waiting
            .poll_recv(context)
            .map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_was_written_and_rubbish_is_refused() {
        let seen = BTreeMap::from([("a".to_owned(), 12), ("host-b.x".to_owned(), 7)]);
        assert_eq!(id(&seen), "a=12,host-b.x=7");
        assert_eq!(parse_id(&id(&seen)), Some(seen));
        assert_eq!(parse_id(""), Some(BTreeMap::new()));
        for rubbish in ["12", "a=", "a=-1", "a=1;b=2", &"a=1,".repeat(10_000)] {
            assert_eq!(parse_id(rubbish), None, "{rubbish}");
        }
    }
}
