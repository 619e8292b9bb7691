//! The source's side of a migration: has the target wait, has the VMM move, follows it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cluster_core::messages::MoveOutcome;
use cluster_core::model::{GuestId, HostId};
use hyper::Method;
use vmm_core::converge::Goal;
use vmm_core::migration::{Migrate, Phase, Progress, Summary};

use super::view::{Berth, MigrationView};
use crate::driver::Input;
use crate::guests::Host;
use crate::http::client::{CallError, Client, Endpoint};

/// The target has its VMM waiting within this.
const BERTH_LIMIT: Duration = Duration::from_secs(30);
/// The VMM answers within this.
const CONTROL_LIMIT: Duration = Duration::from_secs(5);
/// How often the VMM is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Questions in a row that the VMM may leave without an answer before it counts as gone.
const UNANSWERED_MAX: u32 = 5;
/// Connections that carry memory.
const CONNECTIONS: u32 = 2;

/// A guest that leaves this host.
pub struct Departure {
    /// This host.
    pub host: Arc<Host>,
    /// Which guest.
    pub guest: GuestId,
    /// Where to.
    pub to: HostId,
    /// Where that host's agent answers.
    pub address: SocketAddr,
    /// What the order is known by.
    pub number: u64,
}

impl Departure {
    /// Migrate; returns when it is over.
    pub async fn run(self) -> MoveOutcome {
        let mut view = MigrationView::new(self.to.clone(), self.number);
        self.tell(&view).await;
        let outcome = match self.depart(&mut view).await {
            Ok(summary) => MoveOutcome::Moved {
                total_ms: summary.total_us / 1000,
                blackout_us: summary.blackout_us,
                sent_mib: summary.sent_bytes >> 20,
                link_mib_s: view.progress.rate >> 20,
            },
            Err(why) => MoveOutcome::Failed { why },
        };
        if let MoveOutcome::Failed { why } = &outcome {
            view.progress.error.get_or_insert(why.clone());
        }
        view.over = true;
        self.tell(&view).await;
        outcome
    }

    async fn depart(&self, view: &mut MigrationView) -> Result<Summary, String> {
        let vmm = control(&self.host, &self.guest);
        let berth = ask_for_berth(&self.host, &self.guest, self.address).await;
        let wish = wish(&self.host, &berth.map_err(|e| e.to_string())?);
        let begun: Result<(), CallError> =
            vmm.call(Method::PUT, "/v1/migration", Some(&wish)).await;
        begun.map_err(|error| error.to_string())?;
        self.follow(&vmm, view).await
    }

    async fn follow(&self, vmm: &Client, view: &mut MigrationView) -> Result<Summary, String> {
        let mut unanswered = 0;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let progress: Progress = match vmm.call(Method::GET, "/v1/migration", None::<&()>).await
            {
                Ok(progress) => progress,
                Err(error) => {
                    unanswered += 1;
                    if unanswered == UNANSWERED_MAX {
                        return Err(format!(
                            "its VMM does not say how it went ({error}); its lease tells where it is"
                        ));
                    }
                    continue;
                }
            };
            unanswered = 0;
            view.progress = progress.clone();
            self.tell(view).await;
            match progress.phase {
                Phase::Done => {
                    return progress
                        .summary
                        .ok_or_else(|| "its VMM told no summary".to_owned());
                }
                // Uncertain is not the end: the VMM asks the lease until it answers.
                Phase::Failed => {
                    let why = progress.error;
                    return Err(why.unwrap_or_else(|| "its VMM does not say why".to_owned()));
                }
                _ => {}
            }
        }
    }

    async fn tell(&self, view: &MigrationView) {
        let news = Input::Migration(self.guest.clone(), view.clone());
        // Fails only when the agent is ending.
        let _ = self.host.driver.send(news).await;
    }
}

/// Have the other host's agent wait for the guest; where.
pub async fn ask_for_berth(
    host: &Host,
    guest: &str,
    address: SocketAddr,
) -> Result<Berth, CallError> {
    let endpoint = Endpoint::Member {
        address,
        tls: host.tls.clone(),
    };
    let path = format!("/member/guests/{guest}/arrival");
    Client::new(endpoint, BERTH_LIMIT)
        .call(Method::POST, &path, None::<&()>)
        .await
}

/// The VMM of a guest of this host.
pub fn control(host: &Host, guest: &str) -> Client {
    Client::new(Endpoint::Unix(host.api_socket(guest)), CONTROL_LIMIT)
}

/// What its VMM is asked for.
pub fn wish(host: &Host, berth: &Berth) -> Migrate {
    Migrate {
        to: berth.address.to_string(),
        connections: CONNECTIONS,
        goal: Goal {
            accept_longer: true,
            ..Goal::default()
        },
        bandwidth_max: 0,
        verify: false,
        tls_dir: Some(host.identity.to_string_lossy().into_owned()),
        dry_run: false,
    }
}
