//! The routes: what can be answered here is, what only the leader knows is asked of it,
//! what concerns a running guest is passed on to its host.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use cluster_core::brain::Brain;
use cluster_core::model::{Desired, HostId};
use hyper::{Method, StatusCode};
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};
use shared_storage::{Datastore, StoreError};
use tokio::sync::{mpsc, oneshot, watch};

use super::views::{ClusterView, CreateGuest, Event, Problem, StopGuest};
use super::{clone, create, edit, off, power};
use crate::admission::{self, Candidate, Where};
use crate::console;
use crate::driver::Input;
use crate::drs;
use crate::event_stream;
use crate::guest_file::GuestFile;
use crate::guests::Host;
use crate::history;
use crate::http::BODY_BYTES_MAX;
use crate::http::client::{CallError, Client, Endpoint, Refusal};
use crate::http::wish::Wish;
use crate::leaving;
use crate::mail::{Letter, MAIL_PATH};
use crate::maintenance;
use crate::metrics::{self, Metrics};
use crate::migration;
use crate::openapi;
use crate::picture::Picture;
use crate::reader::Nudge;
use crate::rules;
use crate::settings;
use crate::tokens;

/// Another member answers within this, or the caller is told.
const FORWARD_LIMIT: Duration = Duration::from_secs(30);
/// How long a start or stop is waited for before the caller is told to look later.
const ACT_LIMIT: Duration = Duration::from_mins(4);
/// A leader that lives has drawn its picture within this.
const PICTURE_LIMIT: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(200);
/// A guest that failed to start everywhere it could, and that nobody tries to start for so long,
/// is not waited for any longer.
const STUCK_AFTER: Duration = Duration::from_secs(3);
/// Most events given at once.
const EVENTS_MAX: usize = 10_000;
const EVENTS_DEFAULT: usize = 100;

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

/// A refusal on its way out.
#[derive(Debug)]
pub struct Refused(pub StatusCode, pub String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(Refusal { error: self.1 })).into_response()
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        let status = match &error {
            StoreError::Missing(_) => StatusCode::NOT_FOUND,
            StoreError::Exists(_) | StoreError::Changed { .. } => StatusCode::CONFLICT,
            StoreError::Name { .. } => StatusCode::BAD_REQUEST,
            full if matches!(
                full.io_kind(),
                Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
            ) =>
            {
                StatusCode::INSUFFICIENT_STORAGE
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

impl From<CallError> for Refused {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused { status, message } => Self(status, message),
            other => Self(StatusCode::BAD_GATEWAY, other.to_string()),
        }
    }
}

/// What came of an act, in words.
#[derive(Debug, Serialize, Deserialize)]
pub struct Said {
    said: String,
}

pub(crate) type Answer = Result<Json<Said>, Refused>;

/// The answer to an act.
pub(crate) fn said(said: String) -> Json<Said> {
    Json(Said { said })
}

/// What people and scripts may ask.
pub fn public(api: Arc<Api>) -> Router {
    public_routes()
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}

/// The same, yet without anything to answer from.
pub(crate) fn public_routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/cluster", get(cluster))
        .route("/v1/images", get(images))
        .route("/v1/events", get(events))
        .route("/v1/guests", post(create_guest))
        .route("/v1/guests/{guest}", axum::routing::delete(delete_guest))
        .route("/v1/guests/{guest}/start", post(start))
        .route("/v1/guests/{guest}/stop", post(stop))
        .merge(power::public())
        .merge(edit::public())
        .merge(clone::public())
        .merge(drs::routes::public())
        .merge(rules::routes::public())
        .merge(settings::routes::public())
        .merge(migration::routes::public())
        .merge(console::routes::public())
        .merge(maintenance::routes::public())
        .merge(leaving::routes::public())
        .merge(tokens::routes::public())
        .merge(openapi::public())
        .merge(event_stream::public())
        .merge(metrics::routes::public())
}

/// What other members may ask besides.
pub fn member(api: Arc<Api>) -> Router {
    let mail = Router::new()
        .route(MAIL_PATH, post(take_mail))
        .route("/member/picture", get(picture))
        .merge(drs::routes::member())
        .merge(migration::routes::member())
        .merge(console::routes::member())
        .merge(maintenance::routes::member())
        .merge(leaving::routes::member())
        .merge(admission::member())
        .with_state(api.clone());
    public(api).merge(mail)
}

async fn take_mail(State(api): State<Arc<Api>>, Json(letter): Json<Letter>) -> StatusCode {
    match api.driver.try_send(Input::Mail(letter)) {
        Ok(()) => StatusCode::NO_CONTENT,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Our own view, without asking anybody: for those who take us for the leader.
async fn picture(State(api): State<Arc<Api>>) -> Result<Json<ClusterView>, Refused> {
    api.leaders_view().await.map(Json)
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

    pub(crate) fn member(&self, address: std::net::SocketAddr) -> Client {
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
        let _ = self.driver.send(Input::Forgive(guest.to_owned())).await;
        Ok(())
    }

    /// Wait until the guest is as `done` says, or say how it stands.
    pub async fn wait_for(
        &self,
        guest: &str,
        done: impl Fn(&super::views::GuestView) -> Option<String>,
    ) -> Answer {
        let give_up = Instant::now() + ACT_LIMIT;
        let mut last = String::from("nothing is known of it yet");
        let mut stuck_since = None;
        while Instant::now() < give_up {
            if let Ok(view) = self.view().await
                && let Some(found) = view.guests.iter().find(|g| g.name == guest)
            {
                if let Some(words) = done(found) {
                    return Ok(said(words));
                }
                let is_stuck = found.failed_starts > 0 && found.host.is_none();
                match &found.reason {
                    Some(why) if is_stuck => {
                        let since = stuck_since.get_or_insert_with(Instant::now);
                        if since.elapsed() >= STUCK_AFTER {
                            return Err(Refused(StatusCode::CONFLICT, is_stuck_words(guest, why)));
                        }
                    }
                    _ => stuck_since = None,
                }
                last = match &found.reason {
                    Some(reason) => format!("{}: {reason}", found.state),
                    None => found.state.clone(),
                };
            }
            tokio::time::sleep(POLL).await;
        }
        let limit = ACT_LIMIT.as_secs();
        let why = format!("{guest} is not there after {limit} s ({last}); see: godwit events");
        Err(Refused(StatusCode::GATEWAY_TIMEOUT, why))
    }
}

fn is_stuck_words(guest: &str, why: &str) -> String {
    format!("{guest} is to run and does not: {why}; to have it off: godwit stop {guest}")
}

pub(super) fn no_guest(name: &str, error: StoreError) -> Refused {
    match error {
        StoreError::Missing(_) => Refused(
            StatusCode::NOT_FOUND,
            format!("there is no guest {name}; `godwit guests` lists them"),
        ),
        other => other.into(),
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

async fn create_guest(State(api): State<Arc<Api>>, Wish(wish): Wish<CreateGuest>) -> Answer {
    let (name, wanted) = (wish.name.clone(), wish.start);
    api.on_store(move |store| create::create(store, &wish))
        .await?;
    api.nudge.nudge();
    if !wanted {
        return Ok(said(format!(
            "{name} is made; start it with: godwit start {name}"
        )));
    }
    start_guest(&api, &name, Where::default())
        .await
        .map_err(|Refused(status, why)| {
            Refused(status, format!("{name} is made, but not started: {why}"))
        })
}

fn running(guest: &super::views::GuestView) -> Option<String> {
    let host = guest.host.as_ref().filter(|_| guest.state == "running")?;
    Some(format!("{} runs on {host}", guest.name))
}

async fn start(
    State(api): State<Arc<Api>>,
    Path(guest): Path<String>,
    Query(place): Query<Where>,
) -> Answer {
    start_guest(&api, &guest, place).await
}

async fn start_guest(api: &Arc<Api>, guest: &str, place: Where) -> Answer {
    let name = guest.to_owned();
    let read = move |store: &Datastore| {
        let dir = store.guest(&name).map_err(|error| no_guest(&name, error))?;
        Ok(dir.spec::<GuestFile>()?.spec)
    };
    let file = api.on_store(read).await?;
    let warning = match file.desired {
        // It has been admitted, and may be waiting for room.
        Desired::Running => match place.on {
            None => None,
            Some(host) => {
                let why = format!(
                    "{guest} runs or is about to; to move it: godwit migrate {guest} {host}"
                );
                return Err(Refused(StatusCode::CONFLICT, why));
            }
        },
        Desired::Stopped => {
            let candidate = Candidate {
                guest: file.model(),
                place: Some(place),
            };
            admission::ask(api, guest, candidate).await?
        }
    };
    api.change_guest(guest, |file| file.desired = Desired::Running)
        .await?;
    let Json(mut started) = api.wait_for(guest, running).await?;
    if let Some(warning) = warning {
        started.said = format!("{}\nwarning: {warning}", started.said);
    }
    Ok(Json(started))
}

async fn stop(
    State(api): State<Arc<Api>>,
    Path(guest): Path<String>,
    Wish(how): Wish<StopGuest>,
) -> Answer {
    let change = move |file: &mut GuestFile| {
        file.desired = Desired::Stopped;
        file.grace_s = how.grace_s;
    };
    api.change_guest(&guest, change).await?;
    let stopped = |guest: &super::views::GuestView| {
        guest
            .host
            .is_none()
            .then(|| format!("{} is off", guest.name))
    };
    api.wait_for(&guest, stopped).await
}

async fn delete_guest(State(api): State<Arc<Api>>, Path(guest): Path<String>) -> Answer {
    let (name, host) = (guest.clone(), api.host.clone());
    api.on_store(move |store| {
        let dir = store.guest(&name).map_err(|error| no_guest(&name, error))?;
        // Held until the directory is gone, and with it the lease.
        let _held = off::hold(&host, &dir, "")?;
        Ok(store.remove_guest(&name)?)
    })
    .await?;
    api.nudge.nudge();
    Ok(said(format!("{guest} and its disks are gone")))
}

/// Anything else.
pub async fn unknown() -> Refused {
    Refused(
        StatusCode::NOT_FOUND,
        "there is no such request; GET /v1/openapi.json tells what can be asked".to_owned(),
    )
}
