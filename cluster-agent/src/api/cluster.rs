//! What is seen of the cluster: its hosts and guests, as the leader knows them, and its history.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use shared_storage::Datastore;

use super::answer::Refused;
use super::shared::Api;
use super::views::{ClusterView, Event, Problem};
use crate::http::client::{Client, Endpoint};
use crate::{admission, history};

/// A leader that lives has drawn its picture within this.
const PICTURE_LIMIT: Duration = Duration::from_secs(3);
/// Most events given at once.
const EVENTS_MAX: usize = 10_000;
const EVENTS_DEFAULT: usize = 100;

/// What people and scripts may ask.
pub fn public() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/cluster", get(cluster))
        .route("/v1/images", get(images))
        .route("/v1/events", get(events))
}

/// What members may ask of the leader besides.
pub fn member() -> Router<Arc<Api>> {
    Router::new().route("/member/picture", get(picture))
}

impl Api {
    /// The leader's view of the cluster: the only one that knows of every guest.
    pub(crate) async fn view(&self) -> Result<ClusterView, Refused> {
        let picture = self.picture.borrow().clone();
        let mut view: ClusterView = match &picture.leader {
            Some((_, address)) if !picture.leads => {
                let tls = self.tls.clone();
                let address = *address;
                let leader = Client::new(Endpoint::Member { address, tls }, PICTURE_LIMIT);
                leader
                    .call(Method::GET, "/member/picture", None::<&()>)
                    .await?
            }
            Some(_) => self.leaders_view().await?,
            None => {
                let why = "no host leads the cluster yet; ask again in a few seconds";
                return Err(Refused(StatusCode::SERVICE_UNAVAILABLE, why.to_owned()));
            }
        };
        view.cluster_id.clone_from(&self.store.cluster().name);
        Ok(view)
    }

    /// What this host knows by itself, for people who look while nobody leads.
    fn own_view(&self, why: &str) -> ClusterView {
        let picture = self.picture.borrow().clone();
        let mut view = picture.view;
        view.cluster_id.clone_from(&self.store.cluster().name);
        for guest in view.guests.iter_mut().filter(|guest| guest.host.is_none()) {
            "unknown".clone_into(&mut guest.state);
        }
        if let Some(leader) = view.leader.take() {
            view.problems.push(Problem {
                what: format!("{leader}, which leads, does not answer: {why}"),
                remedy: format!(
                    "another host takes the lead within seconds; until then this is what {} knows",
                    self.me
                ),
            });
        }
        view
    }

    /// What only the leader can tell, which we are.
    async fn leaders_view(&self) -> Result<ClusterView, Refused> {
        let picture = self.picture.borrow().clone();
        if !picture.leads {
            let why = format!(
                "{} does not lead the cluster (any more); ask again",
                self.me
            );
            return Err(Refused(StatusCode::MISDIRECTED_REQUEST, why));
        }
        let mut view = picture.view;
        view.reserve = admission::reserve(self, &view).await?;
        Ok(view)
    }
}

async fn cluster(State(api): State<Arc<Api>>) -> Result<Json<ClusterView>, Refused> {
    const UNANSWERED: [StatusCode; 3] = [
        StatusCode::BAD_GATEWAY,
        StatusCode::MISDIRECTED_REQUEST,
        StatusCode::SERVICE_UNAVAILABLE,
    ];
    match api.view().await {
        Err(Refused(status, why)) if UNANSWERED.contains(&status) => Ok(Json(api.own_view(&why))),
        view => view.map(Json),
    }
}

async fn images(State(api): State<Arc<Api>>) -> Result<Json<Vec<String>>, Refused> {
    api.on_store(|store| Ok(store.images()?)).await.map(Json)
}

#[derive(Deserialize)]
struct HowMany {
    count: Option<u32>,
    about: Option<String>,
}

async fn events(
    State(api): State<Arc<Api>>,
    Query(query): Query<HowMany>,
) -> Result<Json<Vec<Event>>, Refused> {
    let count = query
        .count
        .map_or(EVENTS_DEFAULT, |count| count as usize)
        .min(EVENTS_MAX);
    let read = move |store: &Datastore| {
        let about = query.about.as_deref();
        Ok(history::read_all(&**store.state(), about, count)?)
    };
    api.on_store(read).await.map(Json)
}

/// Our own view, without asking anybody: for those who take us for the leader.
async fn picture(State(api): State<Arc<Api>>) -> Result<Json<ClusterView>, Refused> {
    api.leaders_view().await.map(Json)
}
