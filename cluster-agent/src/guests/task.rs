//! One guest on this host, from the claim of its lease to its end.
//!
//! ```text
//!            Start            won, spawned          answers
//!   (none) ─────────► Claiming ──────────► Booting ─────────► Watching ◄── Adopt
//!                        │                    │                 │   ▲
//!                  held, │              ended │           ended │   │ restarted, with
//!                  taken ▼                    ▼                 ▼   │ growing pauses
//!                      (none) ◄──────────── what does the lease say?
//!                                  released, lost, or given up
//! ```

mod arrival;
mod claim;
mod lease;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_core::event::{Event, Level, Record, StopHow};
use cluster_core::messages::{GuestState, LocalGuest, StartOutcome};
use cluster_core::model::GuestId;
use cluster_core::observation::Counted;
use hyper::Method;
use shared_storage::StoreError;
use shared_storage::clock::boottime_us;
use shared_storage::lease::HeldLease;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{info, warn};
use vmm_core::control::Info;

use super::process::{self, Vmm};
use super::{Host, Observed};
use crate::driver::Input;
use crate::guest_file::GuestFile;
use crate::migration::view;
use crate::network::{remove_tap, tap_name};

/// How often a claim is tried meanwhile.
const CLAIM_PAUSE: Duration = Duration::from_millis(50);
/// One file operation of the lease may take so long.
const STORAGE_LIMIT: Duration = Duration::from_secs(10);
/// A VMM that does not answer by then has failed to start. It may wait for two minutes until the
/// storage's server has given up on the host that had a disk locked.
const BOOT_LIMIT: Duration = Duration::from_mins(3);

/// Takes the word where the guest is waited for, or why it is not.
pub type Berth = oneshot::Sender<Result<view::Berth, String>>;

/// What a task is told.
#[derive(Debug)]
pub enum Order {
    /// Claim the lease and run the guest.
    Start {
        /// The epoch to take it over from.
        from_epoch: u64,
        /// Why, for the lease and the history.
        because: String,
    },
    /// It runs already: watch it.
    Adopt,
    /// Have a VMM wait for it to come by live migration.
    Arrive(Berth),
    /// Stop it and release its lease.
    Stop(StopHow),
    /// Nobody runs it here: release its lease if that names this host.
    Release,
}

/// Why the task is over.
enum End {
    /// The guest is not here any more, as it should be.
    Gone(&'static str),
    /// It did not work out.
    Failed(String),
}

struct Task {
    host: Arc<Host>,
    guest: GuestId,
    run_dir: PathBuf,
    orders: mpsc::Receiver<Order>,
    epoch: u64,
    running_since: Option<Instant>,
}

/// Run until the guest is not here any more.
pub async fn run(host: Arc<Host>, guest: GuestId, orders: mpsc::Receiver<Order>) {
    let run_dir = host.run_dir(&guest);
    let mut task = Task {
        host,
        guest,
        run_dir,
        orders,
        epoch: 0,
        running_since: None,
    };
    let end = match task.orders.recv().await {
        Some(Order::Start {
            from_epoch,
            because,
        }) => task.start(from_epoch, &because).await,
        Some(Order::Adopt) => task.adopt().await,
        Some(Order::Arrive(reply)) => task.arrive(reply).await,
        Some(Order::Release) => task.let_go().await,
        Some(Order::Stop(_)) | None => return,
    };
    match end {
        End::Gone(why) => {
            let text = format!("does not run here any more: {why}");
            task.record(Level::Info, text).await;
        }
        End::Failed(why) => {
            let text = format!("could not be run here: {why}");
            task.record(Level::Warning, text).await;
        }
    }
    task.clean_up().await;
    task.turn_away().await;
    task.tell(None).await;
}

impl Task {
    async fn start(&mut self, from_epoch: u64, because: &str) -> End {
        info!(guest = self.guest, from_epoch, because, "starting");
        self.tell(Some(GuestState::Starting)).await;
        let vmm = match self.boot(from_epoch).await {
            Ok(vmm) => vmm,
            Err(outcome) => {
                let why = match &outcome {
                    StartOutcome::Failed { why } | StartOutcome::Refused { why } => why.clone(),
                    _ => "another host was faster".to_owned(),
                };
                self.done(outcome).await;
                return End::Failed(why);
            }
        };
        self.done(StartOutcome::Running { epoch: self.epoch }).await;
        self.watch(vmm).await
    }

    async fn let_go(&mut self) -> End {
        if process::is_running(&self.run_dir) {
            return self.adopt().await;
        }
        match self.last_lease().await {
            Ok(Some(last)) if self.is_mine(&last) => {
                self.give_up_lease().await;
                End::Gone("its lease was held here and nobody ran it")
            }
            Ok(_) => End::Gone("its lease is not held here any more"),
            Err(error) => End::Failed(format!("cannot read its lease: {error}")),
        }
    }

    async fn adopt(&mut self) -> End {
        let vmm = match process::find(&self.run_dir) {
            Ok(vmm) => vmm,
            Err(error) => return End::Failed(format!("cannot find its VMM: {error}")),
        };
        match self.last_lease().await {
            Ok(Some(last)) => self.epoch = last.epoch,
            Ok(None) => return End::Gone("it has no lease"),
            // The VMM keeps its own watch over the lease; its epoch shows with the next look.
            Err(error) => warn!(guest = self.guest, %error, "cannot read its lease"),
        }
        self.watch(vmm).await
    }

    /// Claim the lease, prepare, spawn, and wait until the VMM answers.
    async fn boot(&mut self, from_epoch: u64) -> Result<Vmm, StartOutcome> {
        let lease = self.claim(from_epoch).await?;
        self.epoch = lease.record().map_or(from_epoch + 1, |record| record.epoch);
        self.tell(Some(GuestState::Starting)).await;
        let failed = |why: String| StartOutcome::Failed { why };
        if let Err(why) = self.prepare().await {
            self.release(lease).await;
            return Err(failed(why));
        }
        // From here on the lease is the VMM's to adopt.
        drop(lease);
        let started = match process::spawn(&self.host, &self.guest, &self.run_dir) {
            Ok(vmm) => self.await_answer(vmm).await,
            Err(error) => Err(error.to_string()),
        };
        match started {
            Ok(vmm) => Ok(vmm),
            Err(why) => {
                self.give_up_lease().await;
                Err(failed(why))
            }
        }
    }

    async fn claim(&self, from_epoch: u64) -> Result<HeldLease, StartOutcome> {
        let (host, guest) = (self.host.clone(), self.guest.clone());
        let failed = |error: String| StartOutcome::Failed { why: error };
        let claim = move || claim::claim(&host, &guest, from_epoch);
        let joined = tokio::task::spawn_blocking(claim).await;
        joined.map_err(|error| failed(error.to_string()))?
    }

    /// Spec, taps and run directory.
    async fn prepare(&self) -> Result<(), String> {
        let (host, guest, run_dir) = (self.host.clone(), self.guest.clone(), self.run_dir.clone());
        let prepare = move || claim::prepare(&host, &guest, &run_dir);
        let joined = tokio::task::spawn_blocking(prepare).await;
        joined.map_err(|error| error.to_string())?
    }

    async fn await_answer(&self, vmm: Vmm) -> Result<Vmm, String> {
        let answers = async {
            while self.look(&vmm).await.is_none() {
                tokio::time::sleep(CLAIM_PAUSE).await;
            }
        };
        let first = tokio::select! {
            () = vmm.ended() => Err(self.last_words()),
            answered = timeout(BOOT_LIMIT, answers) => answered.map_err(|_| {
                format!("its VMM did not answer within {} s", BOOT_LIMIT.as_secs())
            }),
        };
        if first.is_err() {
            vmm.kill();
        }
        first.map(|()| vmm)
    }

    async fn look(&self, vmm: &Vmm) -> Option<Info> {
        vmm.control
            .call(Method::GET, "/v1/info", None::<&()>)
            .await
            .ok()
    }

    /// The last line of the VMM's log.
    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.run_dir.join("vmm.log")).unwrap_or_default();
        let line = log
            .lines()
            .next_back()
            .unwrap_or("its VMM ended without a word");
        line.to_owned()
    }

    async fn tell(&self, state: Option<GuestState>) {
        self.send(state, None).await;
    }

    async fn send(&self, state: Option<GuestState>, counted: Option<Counted>) {
        let local = state.map(|state| LocalGuest {
            epoch: self.epoch,
            state,
            running_ms: self
                .running_since
                .map_or(0, |since| since.elapsed().as_millis() as u64),
        });
        let observed = Observed { local, counted };
        // Fails only when the agent is ending.
        let _ = self
            .host
            .driver
            .send(Input::Guest(self.guest.clone(), observed))
            .await;
    }

    /// Into the history, where it says why.
    async fn record(&self, level: Level, text: String) {
        let about = self.guest.clone();
        let record = Record { level, about, text };
        let _ = self.host.driver.send(Input::Record(record)).await;
    }

    async fn done(&self, outcome: StartOutcome) {
        let guest = self.guest.clone();
        let event = Event::StartDone { guest, outcome };
        let _ = self
            .host
            .driver
            .send(Input::Brain(boottime_us(), event))
            .await;
    }

    /// No order comes any more; a start that is left is answered.
    async fn turn_away(&mut self) {
        self.orders.close();
        while let Some(order) = self.orders.recv().await {
            if let Order::Start { .. } = order {
                self.refuse_start("it was just being let go here").await;
            }
        }
    }

    async fn refuse_start(&self, why: &str) {
        let why = why.to_owned();
        self.done(StartOutcome::Refused { why }).await;
    }

    async fn guest_file(&self) -> Result<GuestFile, StoreError> {
        self.on_dir(|dir| dir.spec::<GuestFile>().map(|revised| revised.spec))
            .await
    }

    async fn clean_up(&self) {
        let guest = self.guest.clone();
        let cards = self.guest_file().await.map_or(0, |file| file.macs.len());
        for card in 0..cards {
            if let Err(error) = remove_tap(&tap_name(&guest, card)) {
                warn!(guest, %error, "a tap is left behind");
            }
        }
        // The log stays for who wants to know; the rest would only confuse a later agent.
        for name in ["api.sock", "console.sock", "vmm.pid"] {
            let _ = std::fs::remove_file(self.run_dir.join(name));
        }
    }
}
