//! Messages between agents, over mutual TLS: sent and forgotten, in order, or lost.
//!
//! What a message means is the brain's; here each peer has a bounded queue and one
//! connection. When a peer cannot be reached its whole queue is dropped: old news would only
//! delay the new.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_core::messages::Message;
use cluster_core::model::HostId;
use hyper::Method;
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::debug;

use crate::http::client::{Client, Endpoint};
use crate::metrics::Metrics;

/// Where members take mail.
pub const MAIL_PATH: &str = "/member/mail";
/// A peer that has not greeted us by then is tried anew.
const GREETING_LIMIT: Duration = Duration::from_secs(4);
/// Mail that is not taken by then is lost.
const DELIVERY_LIMIT: Duration = Duration::from_secs(2);
/// Messages that may wait for one peer.
const QUEUE_MAX: usize = 64;

/// A message with its sender.
///
/// The sender is believed: whoever shows a certificate of the cluster can read the
/// authority's key on the datastore, and so could show any member's.
#[derive(Debug, Serialize, Deserialize)]
pub struct Letter {
    /// Who wrote it.
    pub from: HostId,
    /// What it says.
    pub message: Message,
}

/// Sends letters to the other members.
#[derive(Debug)]
pub struct Outbox {
    me: HostId,
    tls: Arc<ClientConfig>,
    metrics: Arc<Metrics>,
    peers: BTreeMap<HostId, Peer>,
}

#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    queue: mpsc::Sender<Message>,
}

impl Outbox {
    /// An outbox that knows no peers yet.
    pub fn new(me: HostId, tls: Arc<ClientConfig>, metrics: Arc<Metrics>) -> Self {
        Self {
            me,
            tls,
            metrics,
            peers: BTreeMap::new(),
        }
    }

    /// These are the members now. Queues and connections to others end.
    pub fn set_members(&mut self, members: &BTreeMap<HostId, SocketAddr>) {
        self.peers
            .retain(|host, peer| members.get(host) == Some(&peer.address));
        for (host, &address) in members {
            if *host != self.me && !self.peers.contains_key(host) {
                self.peers.insert(host.clone(), self.open(host, address));
            }
        }
    }

    fn open(&self, to: &HostId, address: SocketAddr) -> Peer {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let endpoint = Endpoint::Member {
            address,
            tls: self.tls.clone(),
        };
        let (me, metrics) = (self.me.clone(), self.metrics.clone());
        tokio::spawn(deliver(me, to.clone(), endpoint, waiting, metrics));
        Peer { address, queue }
    }

    /// Send `message` to `to`. It is lost when `to` is no member or its queue is full.
    pub fn send(&self, to: &str, message: Message) {
        if let Some(peer) = self.peers.get(to)
            && peer.queue.try_send(message).is_err()
        {
            debug!(to, "the queue is full; a message is lost");
        }
    }
}

/// Runs until the peer's queue is closed.
async fn deliver(
    me: HostId,
    to: HostId,
    endpoint: Endpoint,
    mut waiting: mpsc::Receiver<Message>,
    metrics: Arc<Metrics>,
) {
    let client = Client::new(endpoint, DELIVERY_LIMIT);
    while let Some(message) = waiting.recv().await {
        let letter = Letter {
            from: me.clone(),
            message,
        };
        let began = Instant::now();
        let delivery = async {
            client.ready(GREETING_LIMIT).await?;
            client
                .call::<()>(Method::POST, MAIL_PATH, Some(&letter))
                .await
        };
        match delivery.await {
            Ok(()) => metrics.delivered(&to, began.elapsed()),
            Err(error) => {
                debug!(%error, "a message is lost");
                let mut lost = 1;
                while waiting.try_recv().is_ok() {
                    lost += 1;
                }
                metrics.lost(&to, lost);
            }
        }
    }
}
