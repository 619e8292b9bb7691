//! The guests of this host: one task each, from the claim of the lease to its end.

mod process;
mod task;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use cluster_core::event::StopHow;
use cluster_core::messages::LocalGuest;
use cluster_core::model::GuestId;
use cluster_core::observation::Counted;
use rustls::ClientConfig;
use shared_storage::{Datastore, Keeper, Watcher};
use tokio::sync::mpsc;
use tracing::warn;
use vmm_core::compat::CpuFeatures;

use crate::driver::Input;
use crate::network::Bridge;
use task::{Berth, Order};

/// What every guest's task needs of its host.
pub struct Host {
    /// The datastore.
    pub store: Datastore,
    /// The host's heartbeat.
    pub keeper: Keeper,
    /// What is known of other hosts' heartbeats.
    pub watcher: RwLock<Watcher>,
    /// Where guests are plugged in.
    pub bridge: Bridge,
    /// The VMM's program.
    pub vmm: PathBuf,
    /// Where other hosts reach this one.
    pub address: IpAddr,
    /// Directory with this host's certificate.
    pub identity: PathBuf,
    /// Our side of the TLS to other members.
    pub tls: Arc<ClientConfig>,
    /// Takes the news of guests.
    pub driver: mpsc::Sender<Input>,
    /// What all hosts' processors can do, as last read.
    pub baseline: RwLock<Option<CpuFeatures>>,
}

impl Host {
    /// Directory for what belongs to `guest` while it runs here.
    fn run_dir(&self, guest: &str) -> PathBuf {
        self.guests_dir().join(guest)
    }

    /// Where the VMM of `guest` answers.
    pub fn api_socket(&self, guest: &str) -> PathBuf {
        process::socket(&self.run_dir(guest))
    }

    /// Where the serial console of `guest` is.
    pub fn console_socket(&self, guest: &str) -> PathBuf {
        process::console(&self.run_dir(guest))
    }

    /// The watcher for a claim. A copy: a claim may wait for minutes on the datastore, and who has
    /// the watcher locked then stops the driver.
    pub fn watcher_for_claim(&self) -> Watcher {
        let watcher = self.watcher.read();
        watcher.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What guests that start here get of the processor, if they are to run on every host.
    fn common_features(&self) -> Option<CpuFeatures> {
        *self.baseline.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn guests_dir(&self) -> PathBuf {
        self.keeper.host().run_dir().join("guests")
    }
}

/// Orders that may wait for one guest's task.
const ORDERS_MAX: usize = 8;

/// All guests of this host.
pub struct Guests {
    host: Arc<Host>,
    tasks: BTreeMap<GuestId, mpsc::Sender<Order>>,
}

/// What a guest's task found out since the last time.
#[derive(Debug, Clone)]
pub struct Observed {
    /// What it does.
    pub local: Option<LocalGuest>,
    /// What its VMM counts.
    pub counted: Option<Counted>,
}

impl Guests {
    /// Find the guests that already run here: an agent may die without them noticing.
    pub fn find(host: Arc<Host>) -> Self {
        let mut guests = Self {
            host,
            tasks: BTreeMap::new(),
        };
        let found = std::fs::read_dir(guests.host.guests_dir());
        for entry in found.into_iter().flatten().flatten() {
            if let Ok(name) = entry.file_name().into_string()
                && process::is_running(&entry.path())
            {
                guests.begin(&name, Order::Adopt);
            }
        }
        guests
    }

    /// Take the guest's lease over from `from_epoch` and run it. `false`: it is busy here, and
    /// nothing will come of this.
    #[must_use]
    pub fn start(&mut self, guest: &str, from_epoch: u64, because: String) -> bool {
        self.begin(
            guest,
            Order::Start {
                from_epoch,
                because,
            },
        )
    }

    /// Have a VMM wait for the guest to come by live migration; `reply` is told where.
    pub fn arrive(&mut self, guest: &str, reply: Berth) {
        self.begin(guest, Order::Arrive(reply));
    }

    /// Stop the guest and release its lease.
    pub fn stop(&mut self, guest: &str, how: StopHow) {
        self.order(guest, Order::Stop(how));
    }

    /// Release the lease of a guest that nobody runs here. One that is here keeps it.
    pub fn release(&mut self, guest: &str) {
        let here = self.tasks.get(guest).is_some_and(|task| !task.is_closed());
        if !here {
            self.begin(guest, Order::Release);
        }
    }

    /// Is none here, not even one on its way or just found again?
    pub fn is_empty(&self) -> bool {
        self.tasks.values().all(mpsc::Sender::is_closed)
    }

    /// The guest's task has ended.
    pub fn ended(&mut self, guest: &str) {
        if self.tasks.get(guest).is_some_and(mpsc::Sender::is_closed) {
            self.tasks.remove(guest);
        }
    }

    fn begin(&mut self, guest: &str, order: Order) -> bool {
        let running = self.tasks.get(guest).filter(|task| !task.is_closed());
        if running.is_none() {
            let (orders, inbox) = mpsc::channel(ORDERS_MAX);
            tokio::spawn(task::run(self.host.clone(), guest.to_owned(), inbox));
            self.tasks.insert(guest.to_owned(), orders);
        }
        self.order(guest, order)
    }

    /// Was it taken? Dropped, it is given again by whoever wants it carried out.
    fn order(&self, guest: &str, order: Order) -> bool {
        let Some(task) = self.tasks.get(guest) else {
            return false;
        };
        let taken = task.try_send(order).is_ok();
        if !taken {
            warn!(guest, "its task is busy; an order is dropped");
        }
        taken
    }
}
