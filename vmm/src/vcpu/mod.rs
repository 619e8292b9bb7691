//! A virtual processor: a thread that runs the guest, and the handle that commands it.
//!
//! ```text
//!              run                      Quit
//!   parked ─────────► running   parked ──────► gone
//!      ▲                │
//!      └── park, fatal ─┘
//! ```
//!
//! A parked processor has no pending I/O: its state can be copied, or poured in.

pub mod cpuid;
pub mod faults;
mod kick;
mod run;
pub mod state;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::VcpuFd;

use crate::bus::Buses;
use crate::notice::Reports;
use crate::urgent;
use faults::{Faults, Statistics};
use kick::ImmediateExit;
use state::Known;

/// Stack of a processor's thread; the kernel backs only what is touched.
const STACK_BYTES: usize = 512 << 10;

/// Why a processor came back from the guest; order of [`EXIT_NAMES`].
#[derive(Debug, Clone, Copy)]
enum Exit {
    PortRead,
    PortWrite,
    MmioRead,
    MmioWrite,
    Interrupted,
    Other,
}

/// What the counters call the reasons.
const EXIT_NAMES: [&str; 6] = [
    "port-read",
    "port-write",
    "mmio-read",
    "mmio-write",
    "interrupted",
    "other",
];

/// What a handle and its thread share.
struct Shared {
    park: AtomicBool,
    parked: Mutex<bool>,
    changed: Condvar,
    gauge: Gauge,
    /// Its thread has it while the guest runs, whoever needs it while parked.
    processor: Mutex<VcpuFd>,
    known: Mutex<Known>,
    /// Its thread goes before others, so that it parks soon.
    is_urgent: AtomicBool,
    /// When it last began to run.
    began: Mutex<Option<Instant>>,
    /// How long to rest at the next interruption, in microseconds.
    rest_us: AtomicU64,
    /// What is to be read of it at the next interruption, or as soon as it is parked.
    to_read: Mutex<Option<Read>>,
}

type Read = Box<dyn FnOnce(&VcpuFd) + Send>;

impl Shared {
    fn processor(&self) -> MutexGuard<'_, VcpuFd> {
        self.processor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Do something to a parked processor.
    fn act<T>(&self, act: impl FnOnce(&VcpuFd, &mut Known) -> T) -> T {
        let processor = self.processor();
        act(&processor, &mut self.known())
    }

    /// Read what was asked for, if it has not been read yet.
    fn read(&self, processor: &VcpuFd) {
        let wanted = self.to_read().take();
        if let Some(read) = wanted {
            read(processor);
        }
    }

    fn to_read(&self) -> MutexGuard<'_, Option<Read>> {
        self.to_read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_parked(&self, parked: bool) {
        *self.parked.lock().unwrap_or_else(PoisonError::into_inner) = parked;
        self.changed.notify_all();
    }
}

/// What counts in a processor; can be read when the processor has gone, too.
#[derive(Clone, Default)]
pub struct Gauge(Arc<Counts>);

#[derive(Default)]
struct Counts {
    thread_id: AtomicI32,
    exits: [AtomicU64; EXIT_NAMES.len()],
}

impl Gauge {
    fn count(&self, exit: Exit) {
        self.0.exits[exit as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn set_thread_id(&self, thread_id: i32) {
        self.0.thread_id.store(thread_id, Ordering::Release);
    }

    /// Add the returns from guest to VMM to `exits`, by reason.
    pub fn add_exits(&self, exits: &mut BTreeMap<String, u64>) {
        for (name, count) in EXIT_NAMES.iter().zip(&self.0.exits) {
            *exits.entry((*name).to_owned()).or_default() += count.load(Ordering::Relaxed);
        }
    }

    /// The thread's number for `/proc/self/task`; 0 before it has started.
    pub fn thread_id(&self) -> i32 {
        self.0.thread_id.load(Ordering::Acquire)
    }
}

/// Orders to the thread of a parked processor.
enum Order {
    Run,
    Act(Box<dyn FnOnce(&Shared) + Send>),
    Quit,
}

/// The handle of a virtual processor. Dropping it ends its thread.
pub struct Vcpu {
    shared: Arc<Shared>,
    immediate_exit: ImmediateExit,
    orders: Sender<Order>,
    statistics: Option<Statistics>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// Start the thread of processor `index`, parked. What it meets that concerns the whole
    /// guest goes to `reports`.
    pub fn spawn(
        index: u32,
        mut fd: VcpuFd,
        known: Known,
        buses: Arc<Buses>,
        reports: Reports,
    ) -> io::Result<Self> {
        kick::install_handler()?;
        let immediate_exit = ImmediateExit::new(&mut fd);
        let statistics = Statistics::of(&fd);
        let shared = Arc::new(Shared {
            park: AtomicBool::new(false),
            parked: Mutex::new(true),
            changed: Condvar::new(),
            gauge: Gauge::default(),
            processor: Mutex::new(fd),
            known: Mutex::new(known),
            is_urgent: AtomicBool::new(false),
            began: Mutex::new(None),
            rest_us: AtomicU64::new(0),
            to_read: Mutex::new(None),
        });
        let (orders, inbox) = mpsc::channel();
        let runner = run::Runner {
            index,
            immediate_exit,
            buses,
            reports,
            shared: shared.clone(),
        };
        let thread = thread::Builder::new()
            .name(format!("vcpu{index}"))
            .stack_size(STACK_BYTES)
            .spawn(move || runner.serve(&inbox))?;
        Ok(Self {
            shared,
            immediate_exit,
            orders,
            statistics,
            thread: Some(thread),
        })
    }

    /// Let it run.
    pub fn run(&self) {
        self.shared.park.store(false, Ordering::Release);
        self.shared.set_parked(false);
        self.hurry();
        self.order(Order::Run);
    }

    /// Ask it to park. Ask all, then wait for all.
    pub fn ask_to_park(&self) {
        self.shared.park.store(true, Ordering::SeqCst);
        self.immediate_exit.set();
        if let Some(thread) = &self.thread {
            kick::send(thread.as_pthread_t());
        }
        // Only now: a guest that spins, before all others and not yet told to stop, would keep the
        // processor from whoever is to tell it (0.95 s were seen, all that sched(7) lets it).
        self.hurry();
    }

    /// Stopped or about to be, it goes before others; once it runs, it is one of many.
    fn hurry(&self) {
        let thread = self.shared.gauge.thread_id();
        // One that has not started yet is as good as running.
        if thread != urgent::THIS_THREAD && urgent::raise(thread) {
            self.shared.is_urgent.store(true, Ordering::Release);
        }
    }

    /// Let it rest for so long, now and once. Nothing happens to a parked one.
    pub fn rest(&self, time: Duration) {
        if time.is_zero() {
            return;
        }
        let time_us = time.as_micros() as u64;
        self.shared.rest_us.store(time_us, Ordering::Release);
        self.immediate_exit.set();
        if let Some(thread) = &self.thread {
            kick::send(thread.as_pthread_t());
        }
    }

    /// Interrupt it for a moment, as stopping it would; [`Vcpu::was_interrupted`] tells when it
    /// has noticed. Nothing happens to a parked one.
    pub fn interrupt(&self) {
        self.rest(run::NOTICE);
    }

    /// Has it noticed the last [`Vcpu::interrupt`]?
    pub fn was_interrupted(&self) -> bool {
        self.shared.rest_us.load(Ordering::Acquire) == 0
    }

    /// How often it waits for pages; none where KVM does not count.
    pub fn faults(&self) -> Option<Faults> {
        self.statistics.as_ref().and_then(Faults::of)
    }

    /// Wait until it is parked.
    pub fn wait_parked(&self) {
        let lock = self.shared.parked.lock();
        let parked = lock.unwrap_or_else(PoisonError::into_inner);
        drop(
            self.shared
                .changed
                .wait_while(parked, |parked| !*parked)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// When it last began to run, if it ever did.
    pub fn began(&self) -> Option<Instant> {
        let began = self.shared.began.lock();
        *began.unwrap_or_else(PoisonError::into_inner)
    }

    /// What it was told that it is.
    pub fn cpuid(&self) -> Vec<kvm_cpuid_entry2> {
        self.shared.known().cpuid.as_slice().to_vec()
    }

    /// Do something to this parked processor, here and now.
    pub fn act<T>(&self, act: impl FnOnce(&VcpuFd, &mut Known) -> T) -> T {
        self.shared.act(act)
    }

    /// Have its own thread do something to this parked processor; what comes of it comes later.
    pub fn have_done<T: Send + 'static>(
        &self,
        act: impl FnOnce(&VcpuFd, &mut Known) -> T + Send + 'static,
    ) -> Receiver<T> {
        let (reply, answer) = mpsc::channel();
        self.order(Order::Act(Box::new(move |shared| {
            // Whoever asked may care no more.
            let _ = reply.send(shared.act(act));
        })));
        answer
    }

    /// Have its own thread read something of this processor, whether it runs or is parked. Nothing
    /// comes of it when somebody asks for something else before it is read.
    pub fn have_read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&VcpuFd) -> T + Send + 'static,
    ) -> Receiver<T> {
        let (reply, answer) = mpsc::channel();
        let read = Box::new(move |processor: &VcpuFd| {
            // Whoever asked may care no more.
            let _ = reply.send(read(processor));
        });
        *self.shared.to_read() = Some(read);
        self.interrupt();
        self.order(Order::Act(Box::new(|shared| {
            shared.read(&shared.processor());
        })));
        answer
    }

    /// What counts in it.
    pub fn gauge(&self) -> Gauge {
        self.shared.gauge.clone()
    }

    fn order(&self, order: Order) {
        // The thread takes orders until it is told to quit, which only `drop` does.
        let _ = self.orders.send(order);
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.ask_to_park();
        self.order(Order::Quit);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
