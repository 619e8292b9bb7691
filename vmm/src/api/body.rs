//! The body of an answer: JSON at once, or events as they happen.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Bytes, Frame};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;
use vmm_core::control::Event;

/// Lines that wait for a slow client.
const LINES_MAX: usize = 16;

/// The body of an answer.
pub enum Body {
    /// All of it.
    Whole(Option<Bytes>),
    /// A line of JSON for each event.
    Lines(mpsc::Receiver<Bytes>),
}

impl Body {
    /// All of it.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }

    /// A line for `now`, and for each event from now on. A client that reads too slowly
    /// misses some.
    pub fn events(now: Event, mut events: broadcast::Receiver<Event>) -> Self {
        let (sender, lines) = mpsc::channel(LINES_MAX);
        tokio::spawn(async move {
            let mut event = now;
            loop {
                if let Ok(mut line) = serde_json::to_vec(&event) {
                    line.push(b'\n');
                    if sender.send(line.into()).await.is_err() {
                        return;
                    }
                }
                event = loop {
                    match events.recv().await {
                        Ok(event) => break event,
                        Err(RecvError::Lagged(_)) => {}
                        Err(RecvError::Closed) => return,
                    }
                };
            }
        });
        Self::Lines(lines)
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Lines(lines) => lines
                .poll_recv(context)
                .map(|line| line.map(|line| Ok(Frame::data(line)))),
        }
    }
}
