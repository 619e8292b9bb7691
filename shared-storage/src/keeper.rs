//! Keeps the host's heartbeat going: one thread in the agent and one in each guest's
//! process, of which at most one writes at a time.
//!
//! The thread does its own I/O and may hang in it as long as the storage does; nobody waits
//! for it. What others need, the deadline, lies in the shared [`Page`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use storage_core::beat::{Writer, turn_us};
use storage_core::hold::Hold;
use storage_core::record::{HeartbeatRecord, Holder};
use storage_core::timing::Timing;

use crate::clock::{LocalHost, boottime_us};
use crate::datastore::Datastore;
use crate::error::StoreError;
use crate::heartbeat::HeartbeatWriter;
use crate::page::Page;
use crate::patience::{ANSWER_LIMIT, within};

pub use storage_core::beat::Writer as Role;

/// Longest sleep between two looks at the page, so that a stop is noticed soon.
const NAP: Duration = Duration::from_millis(100);
/// Pause after a failed write, so that an error that comes at once does not spin.
const BACKOFF: Duration = Duration::from_millis(50);
/// How often [`Keeper::wait_live`] looks.
const POLL: Duration = Duration::from_millis(5);

/// This process's part in keeping the host alive in the eyes of others.
#[derive(Debug)]
pub struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    host: LocalHost,
    cluster: [u8; 16],
    timing: Timing,
    role: Writer,
    page: Arc<Page>,
    stop: AtomicBool,
    last_error: Mutex<Option<String>>,
}

impl Keeper {
    /// Starts keeping. Does not wait for a silent storage for long.
    pub fn start(store: &Datastore, host: &LocalHost, role: Role) -> Result<Self, StoreError> {
        let (at, name) = (store.clone(), host.name().to_owned());
        let make = move || at.host_dir(&name);
        within(
            ANSWER_LIMIT,
            "the making of the directory",
            host.name(),
            make,
        )?;
        let cluster = store.cluster().id;
        let shared = Arc::new(Shared {
            host: host.clone(),
            cluster,
            timing: *store.timing(),
            role,
            page: Arc::new(Page::open(host, cluster)?),
            stop: AtomicBool::new(false),
            last_error: Mutex::new(None),
        });
        let writer = HeartbeatWriter::new(store.heartbeat_path(host.name())?);
        let thread = thread::Builder::new()
            .name("heartbeat".into())
            .spawn({
                let shared = shared.clone();
                move || shared.run(writer)
            })
            .map_err(StoreError::io("start the heartbeat of", host.name()))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// This host.
    pub fn host(&self) -> &LocalHost {
        &self.shared.host
    }

    /// The cluster.
    pub fn cluster(&self) -> [u8; 16] {
        self.shared.cluster
    }

    /// The cluster's timings.
    pub fn timing(&self) -> &Timing {
        &self.shared.timing
    }

    /// The page that all processes of the host share.
    pub fn page(&self) -> &Arc<Page> {
        &self.shared.page
    }

    /// Until when the host may act.
    pub fn hold(&self) -> Hold {
        self.shared.page.hold()
    }

    /// The host's term while it may act; none while it may not.
    pub fn live_term(&self) -> Option<u32> {
        let hold = self.hold();
        hold.is_live(boottime_us()).then(|| hold.term())
    }

    /// This host as the holder of a lease that it gets now.
    pub fn holder(&self) -> Holder {
        Holder {
            host: self.shared.host.name().into(),
            incarnation: self.shared.host.incarnation(),
            term: self.hold().term(),
        }
    }

    /// What the agent says about its host in every heartbeat from now on.
    pub fn set_flags(&self, flags: u32) {
        self.shared.page.set_flags(flags);
    }

    /// Time since a heartbeat of this host was last acknowledged.
    pub fn since_ack(&self) -> Duration {
        Duration::from_micros(boottime_us().saturating_sub(self.shared.page.acked_us()))
    }

    /// Why this process's last heartbeat failed; none when it did not.
    pub fn last_error(&self) -> Option<String> {
        self.shared
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until the host may act.
    pub fn wait_live(&self, timeout: Duration) -> Result<Hold, StoreError> {
        let give_up = Instant::now() + timeout;
        loop {
            let hold = self.hold();
            if hold.is_live(boottime_us()) {
                return Ok(hold);
            }
            if Instant::now() >= give_up {
                return Err(StoreError::NoAnswer {
                    act: "the heartbeat",
                    subject: self.shared.host.name().into(),
                    waited_ms: timeout.as_millis() as u64,
                });
            }
            thread::sleep(POLL);
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // Not joined: it may hang in a write for as long as the storage does.
            drop(thread);
        }
    }
}

impl Shared {
    fn run(&self, mut writer: HeartbeatWriter) {
        while !self.stop.load(Ordering::Acquire) {
            let now_us = boottime_us();
            let pace = self.page.pace();
            let due_us = turn_us(self.role, pace, now_us, &self.timing);
            if due_us > now_us {
                thread::park_timeout(NAP.min(Duration::from_micros(due_us - now_us)));
                continue;
            }
            let is_agent = self.role == Writer::Agent;
            let Some(counter) = self.page.take_turn(pace, now_us, is_agent) else {
                continue;
            };
            if !self.beat(&mut writer, counter) {
                thread::sleep(BACKOFF);
            }
        }
    }

    fn acknowledge(&self, sent_us: u64, now_us: u64) {
        let reach_us = self.timing.reach_us();
        let back_us = self.page.hold().set_back_us(now_us, reach_us);
        if back_us > 0 {
            let back_ms = back_us / 1000;
            tracing::warn!(
                back_ms,
                "CLOCK_BOOTTIME was set back: what this host holds has to be claimed anew"
            );
        }
        self.page.acknowledge(sent_us, now_us, reach_us);
    }

    fn beat(&self, writer: &mut HeartbeatWriter, counter: u64) -> bool {
        // The clock first: what counts is when the write was sent, not when it arrived.
        let sent_us = boottime_us();
        let record = HeartbeatRecord {
            host: self.host.name().into(),
            incarnation: self.host.incarnation(),
            counter,
            sent_us,
            term: self.page.hold().term(),
            flags: self.page.flags(),
            writer_pid: std::process::id(),
        };
        let written = writer.write(&record);
        if written.is_ok() {
            self.acknowledge(sent_us, boottime_us());
        }
        let ok = written.is_ok();
        let mut last_error = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let error = written.err().map(|error| error.to_string());
        if error != *last_error {
            if let Some(error) = &error {
                tracing::warn!(error, "the heartbeat does not reach the datastore");
            } else {
                tracing::info!("the heartbeat reaches the datastore again");
            }
            *last_error = error;
        }
        ok
    }
}
