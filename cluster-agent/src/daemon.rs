//! Puts the agent together: joins the cluster, starts the loop, answers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use axum::middleware;
use shared_storage::clock::LocalHost;
use shared_storage::trust::tls::MutualTls;
use shared_storage::trust::{Authority, TrustError};
use shared_storage::{ClusterFile, Datastore, Keeper, Role, StoreError, Watcher};
use storage_core::timing::Timing;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::info;

use crate::api::routes::{self, Api};
use crate::config::Config;
use crate::driver::{Driver, INPUTS_MAX};
use crate::guests::Host;
use crate::history::History;
use crate::host_facts::HostFacts;
use crate::http::connection::Peer;
use crate::http::gate::gate;
use crate::http::refusals;
use crate::http::server::{TlsListener, bind_unix};
use crate::inventory::HostFile;
use crate::mail::Outbox;
use crate::metrics::{self, Metrics};
use crate::network::{Bridge, NetworkError};
use crate::picture::Picture;
use crate::reader::{self, Nudge};
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
    let address = config.member_address(facts.address);
    let tls = identity(&store, &config, &facts)?;
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), config.port);
    let member_api = TlsListener::bind(any, tls.open.clone())
        .await
        .map_err(host_error("listen on", any))?;
    join(&store, &facts, address)?;

    let local = LocalHost::new(&facts.name, &config.run_dir)?;
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
    });
    let history = Arc::new(History::open(
        &store.host_dir(&facts.name)?,
        facts.name.clone(),
    ));
    let (picture, drawn) = watch::channel(Picture::default());
    let nudge = Nudge::default();
    reader::start(store.clone(), driver.clone(), nudge.clone())
        .map_err(host_error("start", "the reader of the datastore"))?;
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

/// Write down what this host is.
fn join(store: &Datastore, facts: &HostFacts, address: SocketAddr) -> Result<(), DaemonError> {
    let file = HostFile {
        address,
        capacity: facts.capacity,
        cpu_features: facts.cpu_features.iter().cloned().collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    Ok(store.write_host(&facts.name, &file)?)
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
