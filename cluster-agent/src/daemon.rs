//! Puts the agent together: joins the cluster, starts the loop, answers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use axum::middleware;
use shared_storage::clock::LocalHost;
use shared_storage::namesake::namesake;
use shared_storage::trust::tls::MutualTls;
use shared_storage::trust::{Authority, TrustError};
use shared_storage::{ClusterFile, Datastore, Keeper, Role, StoreError, Watcher};
use storage_core::timing::Timing;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::api::routes;
use crate::api::shared::Api;
use crate::baseline;
use crate::config::Config;
use crate::driver::{Driver, INPUTS_MAX};
use crate::guests::Host;
use crate::history::History;
use crate::host_facts::HostFacts;
use crate::http::connection::Peer;
use crate::http::gate::gate;
use crate::http::refusals;
use crate::http::server::{TlsListener, bind_unix};
use crate::inventory::{self, HostFile};
use crate::mail::Outbox;
use crate::metrics::{self, Metrics};
use crate::network::{Bridge, NetworkError};
use crate::picture::Picture;
use crate::reader::{self, Nudge};
use crate::sweeper;
use crate::systemd::Manager;

/// The first heartbeat must reach the datastore within this.
const JOIN_LIMIT: Duration = Duration::from_secs(30);

/// Where programs on the host itself may call it.
const LOOPBACK: [&str; 2] = ["localhost", "127.0.0.1"];

/// Why an agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The datastore.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The certificates.
    #[error("{0}")]
    Trust(#[from] TrustError),
    /// The bridge.
    #[error("{0}")]
    Network(#[from] NetworkError),
    /// Another machine has the same name.
    #[error(
        "another machine beats under the name {name} ({there}); two of one name would take each \
         other's guests: give this one a name of its own with --name or GODWIT_NAME"
    )]
    Namesake {
        /// The name.
        name: String,
        /// What is known of the other.
        there: String,
    },
    /// Anything else of this host.
    #[error("cannot {act} {object}: {source}")]
    Host {
        /// What was to be done.
        act: &'static str,
        /// With what.
        object: String,
        /// Why not.
        source: io::Error,
    },
}

fn host_error(act: &'static str, object: impl ToString) -> impl FnOnce(io::Error) -> DaemonError {
    move |source| DaemonError::Host {
        act,
        object: object.to_string(),
        source,
    }
}

/// Run the agent until it is told to stop. Guests run on.
pub async fn run(config: Config) -> Result<(), DaemonError> {
    let manager = Manager::from_env();
    let config = config
        .absolute()
        .map_err(host_error("find", "the current directory"))?;
    let mut facts =
        HostFacts::discover(config.address).map_err(host_error("look at", "this host"))?;
    if let Some(name) = &config.name {
        facts.name.clone_from(name);
    }
    if let Some(address) = config.address {
        facts.address = address;
    }
    create_dir(&config.run_dir)?;
    let local_api =
        bind_unix(&config.socket()).map_err(host_error("listen on", config.socket().display()))?;
    let store = open_or_create(&config.datastore, &config.cluster_name)?;
    let local = LocalHost::new(&facts.name, &config.run_dir)?;
    refuse_namesake(&store, &local)?;
    let address = config.member_address(facts.address);
    let tls = identity(&store, &config, &facts)?;
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), config.port);
    let member_api = TlsListener::bind(any, tls.open.clone())
        .await
        .map_err(host_error("listen on", any))?;
    let file = describe(&config, &facts, address);
    let lacks = newly_lacks(&store, &facts.name, &file)?;
    let history = History::open(store.state().clone(), facts.name.clone());
    let history = Arc::new(history);
    store.host_dir(&facts.name)?;
    if !lacks.is_empty() {
        announce(&facts.name, &lacks, &history);
    }
    store.write_host(&facts.name, &file)?;

    let keeper = Keeper::start(&store, &local, Role::Agent)?;
    keeper.wait_live(JOIN_LIMIT)?;
    let (driver, inputs) = mpsc::channel(INPUTS_MAX);
    let host = Arc::new(Host {
        watcher: RwLock::new(Watcher::new(&store, &keeper)),
        keeper,
        bridge: Bridge::open_or_create(&config.bridge)?,
        vmm: config.vmm_program(),
        address: facts.address,
        identity: config.identity_dir(),
        tls: tls.client.clone(),
        driver: driver.clone(),
        store: store.clone(),
        baseline: RwLock::default(),
    });
    let (picture, drawn) = watch::channel(Picture::default());
    let nudge = Nudge::default();
    reader::start(store.clone(), driver.clone(), nudge.clone())
        .map_err(host_error("start", "the reader of the datastore"))?;
    sweeper::start(store.clone(), facts.name.clone())
        .map_err(host_error("start", "the sweeper of the datastore"))?;
    let metrics = Arc::new(Metrics::default());
    let outbox = Outbox::new(facts.name.clone(), tls.client.clone(), metrics.clone());
    tokio::spawn(
        Driver::new(
            host.clone(),
            outbox,
            history,
            picture,
            manager.watchdog(),
            metrics.clone(),
        )
        .run(inputs),
    );

    let api = Arc::new(Api {
        store,
        picture: drawn,
        driver,
        nudge,
        tls: tls.client,
        me: facts.name.clone(),
        host: host.clone(),
        metrics: metrics.clone(),
    });
    let counted = |from| middleware::from_fn_with_state((metrics.clone(), from), metrics::count);
    let in_one_form = middleware::from_fn(refusals::in_one_form);
    let public = routes::public(api.clone())
        .fallback(routes::unknown)
        .layer(in_one_form.clone())
        .layer(counted("local"));
    let member = routes::member(api.clone())
        .fallback(routes::unknown)
        .layer(in_one_form)
        .layer(middleware::from_fn_with_state(api, gate))
        .layer(counted("network"));
    let member = member.into_make_service_with_connect_info::<Peer>();
    tokio::spawn(axum::serve(local_api, public).into_future());
    tokio::spawn(axum::serve(member_api, member).into_future());
    info!(host = facts.name, %address, socket = %config.socket().display(), "is here");
    manager.ready(&format!("{} answers at {address}", facts.name));
    wait_for_stop().await;
    manager.stopping();
    info!("goes; its guests run on");
    Ok(())
}

fn create_dir(dir: &Path) -> Result<(), DaemonError> {
    std::fs::create_dir_all(dir).map_err(host_error("create", dir.display()))
}

/// The first host of a cluster makes the datastore, the others find it.
fn open_or_create(root: &Path, cluster: &str) -> Result<Datastore, DaemonError> {
    match Datastore::open(root) {
        Err(StoreError::NotADatastore(_)) => {}
        other => return Ok(other?),
    }
    info!(datastore = %root.display(), cluster, "creates the cluster");
    match Datastore::create(root, &ClusterFile::new(cluster, Timing::default())) {
        // Another host was faster.
        Err(StoreError::Exists(_)) => Ok(Datastore::open(root)?),
        other => Ok(other?),
    }
}

/// Before anything is written under its name.
fn refuse_namesake(store: &Datastore, local: &LocalHost) -> Result<(), DaemonError> {
    let Some(record) = namesake(store, local)? else {
        return Ok(());
    };
    let address = store.read_host::<HostFile>(local.name());
    let there = address.map_or_else(
        |_| format!("its boot id is {}", record.incarnation),
        |host| format!("it answers at {}", host.address),
    );
    Err(DaemonError::Namesake {
        name: local.name().to_owned(),
        there,
    })
}

/// What this host is.
fn describe(config: &Config, facts: &HostFacts, address: SocketAddr) -> HostFile {
    let cpu_features = baseline::of_this_host(&config.vmm_program());
    HostFile {
        address,
        capacity: facts.capacity,
        cpu_features: cpu_features
            .inspect_err(|error| warn!(error, "guests may not be able to come here"))
            .ok(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// What the cluster's guests have had and this host's processor lacks, as nobody knew before.
fn newly_lacks(store: &Datastore, name: &str, file: &HostFile) -> Result<Vec<String>, DaemonError> {
    let mut others = inventory::hosts(store)?;
    let known = others.remove(name).and_then(|known| known.cpu_features);
    let common = baseline::common(others.values());
    Ok(match (common, file.cpu_features) {
        (Some(common), Some(here)) if known != Some(here) => common.missing(here),
        _ => Vec::new(),
    })
}

/// Say before it joins what guests will have to do without because of this host.
fn announce(name: &str, lacks: &[String], history: &History) {
    let lacks = baseline::named(lacks);
    let why = format!(
        "its processor lacks {lacks}: guests that start from now on do without, those that run \
         cannot move to it before they were stopped and started"
    );
    warn!(host = name, why, "joins");
    if let Err(error) = history.record(name, "joins", &why) {
        warn!(%error, "cannot record an event");
    }
}

fn identity(
    store: &Datastore,
    config: &Config,
    facts: &HostFacts,
) -> Result<MutualTls, DaemonError> {
    let dir = config.identity_dir();
    let mut addresses = LOOPBACK.map(String::from).to_vec();
    addresses.push(facts.address.to_string());
    addresses.dedup();
    Authority::open_or_create(&store.trust_dir())?
        .mint_at(&facts.name, &addresses)?
        .write(&dir)?;
    Ok(MutualTls::from_dir(&dir)?)
}

async fn wait_for_stop() {
    let mut signals = [SignalKind::terminate(), SignalKind::interrupt()]
        .into_iter()
        .filter_map(|kind| signal(kind).ok());
    match (signals.next(), signals.next()) {
        (Some(mut terminate), Some(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        // Without signal handlers a signal ends the process by itself.
        _ => std::future::pending().await,
    }
}
