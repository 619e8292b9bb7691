//! While a guest's VMM runs: what it does is reported, orders are carried out, and when it ends
//! the lease tells what that meant.

use std::time::{Duration, Instant};

use cluster_core::event::{Level, StopHow};
use cluster_core::messages::GuestState;
use cluster_core::model::Desired;
use cluster_core::observation::Counted;
use hyper::Method;
use shared_storage::clock::boottime_us;
use tracing::warn;
use vmm_core::control::{Counters, DiskCounters, NetCounters};
use vmm_core::lifecycle::State;

use super::{End, Order, STORAGE_LIMIT, Task};
use crate::guests::process::{self, Vmm};

/// How often a VMM is asked how it does.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A VMM that dies is restarted on the spot so often ...
const RESTARTS_MAX: u32 = 5;
/// ... with a pause that doubles from here ...
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// ... and counts from anew after it has run so long.
const STEADY_AFTER: Duration = Duration::from_mins(10);

impl Task {
    /// The VMM runs: report what it does, carry out orders, and deal with its end.
    pub(super) async fn watch(&mut self, mut vmm: Vmm) -> End {
        let mut restarts = 0;
        loop {
            let began = Instant::now();
            self.running_since = Some(began);
            let ordered = self.follow(&vmm).await;
            self.running_since = None;
            let why = self.last_words();
            match self.last_lease().await {
                Ok(Some(last)) if !self.is_mine(&last) => {
                    return match (last.holder, ordered) {
                        (Some(_), _) => End::Gone("another host has its lease"),
                        // Whether it shall run elsewhere is for whoever ordered it.
                        (None, true) => End::Gone("it was stopped"),
                        (None, false) => {
                            self.switched_off().await;
                            End::Gone("it was switched off")
                        }
                    };
                }
                Ok(None) => return End::Gone("it has no lease"),
                // Ours, or unknown: restarting is safe, for the VMM adopts the lease or fails.
                Ok(Some(_)) | Err(_) => {}
            }
            if began.elapsed() > STEADY_AFTER {
                restarts = 0;
            }
            if ordered || self.wants_stop().await {
                self.give_up_lease().await;
                return End::Gone("it was stopped");
            }
            if restarts == RESTARTS_MAX {
                self.give_up_lease().await;
                return End::Failed(why);
            }
            restarts += 1;
            let pause = FIRST_PAUSE * 2u32.pow(restarts - 1);
            let text = format!(
                "its VMM died ({why}); it is started again here in {} s, try {restarts} of \
                 {RESTARTS_MAX}",
                pause.as_secs()
            );
            self.record(Level::Warning, text).await;
            self.tell(Some(GuestState::Starting)).await;
            tokio::time::sleep(pause).await;
            let again = match process::spawn(&self.host, &self.guest, &self.run_dir) {
                Ok(again) => self.await_answer(again).await,
                Err(error) => Err(error.to_string()),
            };
            match again {
                Ok(again) => vmm = again,
                Err(why) => {
                    self.give_up_lease().await;
                    return End::Failed(why);
                }
            }
        }
    }

    /// Until the VMM ends. Was it ordered to?
    async fn follow(&mut self, vmm: &Vmm) -> bool {
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut cut_at: Option<Instant> = None;
        loop {
            tokio::select! {
                () = vmm.ended() => return cut_at.is_some(),
                order = self.orders.recv() => match order {
                    Some(Order::Stop(how)) if cut_at.is_none() => {
                        cut_at = Some(self.begin_stop(vmm, how).await);
                    }
                    Some(Order::Start { .. }) => self.refuse_start("it runs here").await,
                    Some(_) => {}
                    None => return cut_at.is_some(),
                },
                _ = look.tick() => {
                    self.observe(vmm).await;
                    if cut_at.is_some_and(|at| Instant::now() >= at) {
                        self.power_off(vmm).await;
                    }
                }
            }
        }
    }

    /// Press the button; returns when the power is to be cut.
    async fn begin_stop(&self, vmm: &Vmm, how: StopHow) -> Instant {
        if how == StopHow::PowerOff {
            self.power_off(vmm).await;
            return Instant::now() + STORAGE_LIMIT;
        }
        let grace_s = match self.guest_file().await {
            Ok(file) => {
                let once = file.stop_within_s;
                once.filter(|_| file.desired == Desired::Stopped)
                    .unwrap_or(file.grace_s)
            }
            Err(_) => return Instant::now(),
        };
        let pressed: Result<(), _> = vmm
            .control
            .call(Method::PUT, "/v1/power-button", None::<&()>)
            .await;
        if let Err(error) = pressed {
            warn!(guest = self.guest, %error, "cannot press its power button");
        }
        Instant::now() + Duration::from_secs(grace_s)
    }

    async fn power_off(&self, vmm: &Vmm) {
        let off: Result<(), _> = vmm
            .control
            .call(Method::PUT, "/v1/power-off", None::<&()>)
            .await;
        if let Err(error) = off {
            warn!(guest = self.guest, %error, "cannot switch it off; ending its VMM");
            vmm.kill();
        }
    }

    async fn observe(&mut self, vmm: &Vmm) {
        let Some(info) = self.look(vmm).await else {
            return;
        };
        self.epoch = info.epoch.unwrap_or(self.epoch);
        let at_us = boottime_us();
        let counters: Option<Counters> = vmm
            .control
            .call(Method::GET, "/v1/counters", None::<&()>)
            .await
            .ok();
        let state = match info.state {
            State::Built => GuestState::Starting,
            State::Running | State::Migrating => GuestState::Running {
                beating: counters.as_ref().is_some_and(beats),
            },
            State::Paused | State::Moved => GuestState::Paused,
        };
        let counted = counters.map(|counters| counted(at_us, &counters));
        self.send(Some(state), counted).await;
    }
}

/// Does the software inside live? Its network has been set up, then: a card has sent something.
/// Without a card nobody can tell.
fn beats(counters: &Counters) -> bool {
    counters.nets.is_empty() || counters.nets.iter().any(|net| net.sent_bytes > 0)
}

fn counted(at_us: u64, counters: &Counters) -> Counted {
    let disk = |disk: &DiskCounters| disk.read_bytes + disk.written_bytes;
    let net = |net: &NetCounters| net.received_bytes + net.sent_bytes;
    Counted {
        at_us,
        cpu_us: counters.cpu_us,
        run_delay_us: counters.run_delay_us,
        resident_mib: counters.resident_mib,
        disk_bytes: counters.disks.iter().map(disk).sum(),
        net_bytes: counters.nets.iter().map(net).sum(),
        memory: counters.memory,
    }
}
