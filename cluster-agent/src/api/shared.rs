//! What all routes work with: the datastore, this host's brain and the other members.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cluster_core::brain::Brain;
use cluster_core::model::HostId;
use hyper::StatusCode;
use rustls::ClientConfig;
use shared_storage::Datastore;
use tokio::sync::{mpsc, oneshot, watch};

use super::answer::{Refused, no_guest};
use crate::driver::Input;
use crate::guest_file::GuestFile;
use crate::guests::Host;
use crate::http::client::{Client, Endpoint};
use crate::metrics::Metrics;
use crate::picture::Picture;
use crate::reader::Nudge;

/// Another member answers within this, or the caller is told.
const FORWARD_LIMIT: Duration = Duration::from_secs(30);

/// What the routes work with.
pub struct Api {
    /// The datastore.
    pub store: Datastore,
    /// What this host knows.
    pub picture: watch::Receiver<Picture>,
    /// The driver.
    pub driver: mpsc::Sender<Input>,
    /// Has the datastore read again soon.
    pub nudge: Nudge,
    /// Our side of the TLS to other members.
    pub tls: Arc<ClientConfig>,
    /// This host.
    pub me: String,
    /// Where its guests are.
    pub host: Arc<Host>,
    /// What it has counted.
    pub metrics: Arc<Metrics>,
}

impl Api {
    /// The leader, if that is another host.
    pub(crate) fn other_leader(&self) -> Option<Client> {
        let picture = self.picture.borrow();
        let (_, address) = picture.leader.as_ref().filter(|_| !picture.leads)?;
        Some(self.member(*address))
    }

    /// Asks our own brain something that only a leader's knows; refused if it is not one.
    pub(crate) async fn ask_leading<R: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Brain, u64) -> R + Send + 'static,
    ) -> Result<R, Refused> {
        let (answer, answered) = oneshot::channel();
        let ask = move |brain: &mut Brain, now_us: u64| {
            let said = brain.leads().then(|| question(brain, now_us));
            // Whoever asked may have gone.
            let _ = answer.send(said);
        };
        let _ = self.driver.send(Input::Ask(Box::new(ask))).await;
        answered.await.ok().flatten().ok_or_else(|| {
            let why = format!(
                "{} does not lead the cluster (any more); ask again",
                self.me
            );
            Refused(StatusCode::MISDIRECTED_REQUEST, why)
        })
    }

    pub(crate) fn member(&self, address: SocketAddr) -> Client {
        let tls = self.tls.clone();
        Client::new(Endpoint::Member { address, tls }, FORWARD_LIMIT)
    }

    /// The host on which this guest is.
    pub(crate) async fn host_of(&self, guest: &str) -> Result<HostId, Refused> {
        let view = self.view().await?;
        let found = view.guests.into_iter().find(|found| found.name == guest);
        if found.is_none() {
            // The leader may not have read of it yet.
            let name = guest.to_owned();
            let find = move |store: &Datastore| store.guest(&name).map_err(|e| no_guest(&name, e));
            self.on_store(find).await?;
        }
        found.and_then(|found| found.host).ok_or_else(|| {
            let why = format!("{guest} does not run; start it with: godwit start {guest}");
            Refused(StatusCode::CONFLICT, why)
        })
    }

    /// That member.
    pub(crate) fn member_of(&self, host: &HostId) -> Result<Client, Refused> {
        let address = self.picture.borrow().members.get(host).copied();
        let address = address.ok_or_else(|| {
            let why = format!("nothing is known of {host} here yet; ask again");
            Refused(StatusCode::SERVICE_UNAVAILABLE, why)
        })?;
        Ok(self.member(address))
    }

    pub(crate) async fn on_store<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Datastore) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, Refused> {
        let store = self.store.clone();
        let joined = tokio::task::spawn_blocking(move || act(&store)).await;
        joined.map_err(|e| Refused(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?
    }

    pub(crate) async fn change_guest(
        &self,
        guest: &str,
        change: impl Fn(&mut GuestFile) + Send + 'static,
    ) -> Result<(), Refused> {
        let name = guest.to_owned();
        self.on_store(move |store| {
            let dir = store.guest(&name).map_err(|error| no_guest(&name, error))?;
            let mut file = dir.spec::<GuestFile>()?;
            let before = file.spec.clone();
            change(&mut file.spec);
            if file.spec != before {
                dir.update_spec(file.revision, &file.spec)?;
            }
            Ok(())
        })
        .await?;
        self.nudge.nudge();
        Ok(())
    }
}
