//! The threads that serve one queue.
//!
//! A disk that takes many requests at once has a [`pilot`]; the others go this way:
//!
//! One thread listens for the doorbell; the others sleep. A thread takes one request at a time
//! from the ring. While the storage is fast (page cache) the listener carries the requests out
//! itself, one after the other. Once they take long, whoever takes a request first passes the
//! watch over the ring to another thread, so that as many requests are under way as the guest
//! offers and the crew has threads.
//!
//! ```text
//!              doorbell               took a request
//!   listening ─────────► looking ───────────────────────► carrying out
//!       ▲                 │   ▲   (slow: wakes a sleeper,       │
//!       │ ring empty,     │   │    which looks in its place)    │
//!       │ nobody listens  │   └─────────────────────────────────┘
//!       └─────────────────┤                 done
//!                         │ ring empty, somebody listens
//!                         └──────────────► sleeping ──► (woken) looking
//! ```

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, error, warn};
use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::count;
use super::pilot;
use super::request::Executor;
use crate::devices::virtio::chain::{Buffers, Table};
use crate::devices::virtio::completions::Completions;
use crate::devices::virtio::worker::wait;
use crate::devices::virtio::{ActiveQueue, QueueInterrupt};
use crate::memory::GuestMemory;
use crate::threads::{self, Task};

/// Most threads per queue, and so most requests of a queue under way.
pub(super) const MAX_THREADS: usize = 16;
/// A completion waits at most this long for others to share its interrupt.
const COALESCE: Duration = Duration::from_micros(100);
/// How soon a request that found the gate shut is tried again.
pub(super) const GATE_RETRY: Duration = Duration::from_millis(20);
/// Requests that take longer on average are worth waking another thread for.
const SLOW_NS: u64 = 60_000;

/// The running threads of a queue.
pub(super) struct Crew(Arc<Shared>);

pub(super) struct Shared {
    pub(super) name: String,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) executor: Executor,
    pub(super) table: Table,
    pub(super) doorbell: EventFd,
    pub(super) stop: EventFd,
    stopping: AtomicBool,
    /// The first thread is a pilot, the others are its helpers.
    pub(super) flies: AtomicBool,
    /// Running average of how long a request takes.
    request_ns: AtomicU64,
    ring: Mutex<Ring>,
    wake: Condvar,
}

/// What the threads share under the lock.
pub(super) struct Ring {
    index: u16,
    queue: Queue,
    interrupt: Arc<dyn QueueInterrupt>,
    completions: Completions,
    /// Requests that were taken before and not carried out.
    pub(super) parked: VecDeque<u16>,
    /// Requests that wait for a helper of the pilot.
    pub(super) aside: VecDeque<u16>,
    unsignalled_since: Option<Instant>,
    threads: Vec<Task<()>>,
    listening: bool,
    sleeping: usize,
    /// Sleepers that have been told to wake up and have not yet.
    woken: usize,
    /// The driver broke the ring: nothing to do until it resets the device.
    pub(super) broken: bool,
}

impl Crew {
    /// Begin to serve `queue`, the requests in `parked` first.
    pub(super) fn start(
        name: String,
        queue: ActiveQueue,
        parked: Vec<u16>,
        memory: Arc<GuestMemory>,
        executor: Executor,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            name,
            memory,
            executor,
            table: Table::from(&queue.queue),
            doorbell: queue.doorbell,
            stop: EventFd::new(EFD_NONBLOCK)?,
            stopping: AtomicBool::new(false),
            flies: AtomicBool::new(false),
            request_ns: AtomicU64::new(0),
            ring: Mutex::new(Ring::new(queue.index, queue.queue, queue.interrupt, parked)),
            wake: Condvar::new(),
        });
        Shared::enlist(&shared, &mut shared.lock())?;
        Ok(Self(shared))
    }

    /// Ask all threads to stop, without waiting.
    pub(super) fn ask_to_stop(&self) {
        self.0.stopping.store(true, Ordering::Release);
        let _ = self.0.stop.write(1);
        // Under the lock, so that nobody is between looking at the flag and falling asleep.
        let _ring = self.0.lock();
        self.0.wake.notify_all();
    }

    /// Wait for all threads. Returns the queue and the requests taken from it that are still
    /// to be carried out.
    pub(super) fn stop(self) -> Option<(ActiveQueue, Vec<u16>)> {
        self.ask_to_stop();
        // Nobody is enlisted once the stop has been asked for.
        let threads = std::mem::take(&mut self.0.lock().threads);
        for thread in threads {
            let _ = thread.join();
        }
        let shared = Arc::into_inner(self.0)?;
        let ring = shared
            .ring
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let Ring {
            index,
            queue,
            interrupt,
            mut parked,
            aside,
            ..
        } = ring;
        parked.extend(aside);
        let queue = ActiveQueue {
            index,
            queue,
            doorbell: shared.doorbell,
            interrupt,
        };
        Some((queue, parked.into()))
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Add a thread to the crew.
    fn enlist(this: &Arc<Self>, ring: &mut Ring) -> io::Result<()> {
        let shared = this.clone();
        let role = if ring.threads.is_empty() {
            pilot::lead
        } else if this.flies.load(Ordering::Acquire) {
            pilot::help
        } else {
            serve
        };
        let thread = threads::spawn(this.name.clone(), move || role(&shared))?;
        ring.threads.push(thread);
        Ok(())
    }

    /// Let another thread look after the ring while this one is busy.
    fn pass_the_watch(this: &Arc<Self>, ring: &mut Ring) {
        if !ring.listening && ring.woken == 0 {
            Self::call_another(this, ring);
        }
    }

    /// Have a helper carry out a request that the pilot cannot.
    pub(super) fn put_aside(this: &Arc<Self>, ring: &mut Ring, head: u16) {
        ring.aside.push_back(head);
        Self::call_another(this, ring);
    }

    fn call_another(this: &Arc<Self>, ring: &mut Ring) {
        if this.stopping() {
            return;
        }
        if ring.sleeping > ring.woken {
            ring.woken += 1;
            this.wake.notify_one();
        } else if ring.threads.len() < MAX_THREADS
            && let Err(error) = Self::enlist(this, ring)
        {
            warn!(crew = this.name, %error, "cannot start another I/O thread");
        }
    }

    /// Keep a request for later: the gate is shut.
    pub(super) fn keep(&self, ring: &mut Ring, head: u16) {
        count(&self.executor.counters.gate_waits, 1);
        ring.parked.push_back(head);
    }

    /// The guest has rung: it need not do so again while we are looking.
    pub(super) fn answer_doorbell(&self) {
        let _ = self.doorbell.read();
        let mut ring = self.lock();
        if !ring.broken {
            let disabled = ring.queue.disable_notification(&*self.memory);
            ring.unless_broken(disabled);
        }
    }

    fn note_duration(&self, took: Duration) {
        let took = took.as_nanos().min(u128::from(u32::MAX)) as u64;
        let average = self.request_ns.load(Ordering::Relaxed);
        self.request_ns
            .store(average - average / 8 + took / 8, Ordering::Relaxed);
    }
}

impl Ring {
    pub(super) fn new(
        index: u16,
        queue: Queue,
        interrupt: Arc<dyn QueueInterrupt>,
        parked: Vec<u16>,
    ) -> Self {
        Self {
            index,
            queue,
            interrupt,
            completions: Completions::default(),
            parked: parked.into(),
            aside: VecDeque::new(),
            unsignalled_since: None,
            threads: Vec::new(),
            listening: false,
            sleeping: 0,
            woken: 0,
            broken: false,
        }
    }

    /// The next request, or `None` when there is none and the doorbell will tell.
    pub(super) fn take(&mut self, memory: &GuestMemory) -> Result<Option<u16>, Error> {
        if let Some(head) = self.parked.pop_front() {
            return Ok(Some(head));
        }
        loop {
            if let Some(chain) = self.queue.iter(memory)?.next() {
                return Ok(Some(chain.head_index()));
            }
            self.signal(memory)?;
            if !self.queue.enable_notification(memory)? {
                return Ok(None);
            }
        }
    }

    pub(super) fn complete(
        &mut self,
        memory: &GuestMemory,
        head: u16,
        written: u32,
    ) -> Result<(), Error> {
        self.publish(memory, &[(head, written)])?;
        if self
            .unsignalled_since
            .get_or_insert_with(Instant::now)
            .elapsed()
            > COALESCE
        {
            self.signal(memory)?;
        }
        Ok(())
    }

    /// Give requests back, all in one step.
    pub(super) fn publish(
        &mut self,
        memory: &GuestMemory,
        used: &[(u16, u32)],
    ) -> Result<(), Error> {
        self.completions.publish(&mut self.queue, memory, used)
    }

    /// Has the guest offered what nobody has taken yet?
    pub(super) fn offers_more(&self, memory: &GuestMemory) -> bool {
        let offered = self.queue.avail_idx(memory, Ordering::Acquire);
        offered.is_ok_and(|offered| offered.0 != self.queue.next_avail())
    }

    /// Is the pilot alone?
    pub(super) fn has_no_helpers(&self) -> bool {
        self.threads.len() < 2
    }

    pub(super) fn signal(&mut self, memory: &GuestMemory) -> Result<(), Error> {
        self.unsignalled_since = None;
        if self.completions.should_signal(&self.queue, memory)?
            && let Err(error) = self.interrupt.used()
        {
            warn!(queue = self.index, %error, "cannot interrupt the guest");
        }
        Ok(())
    }

    /// `None` and no more work when the driver has broken the ring.
    pub(super) fn unless_broken<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        if let Err(error) = &result
            && !std::mem::replace(&mut self.broken, true)
        {
            debug!(queue = self.index, %error, "the driver broke its queue");
        }
        result.ok().filter(|_| !self.broken)
    }
}

/// The life of one thread.
pub(super) fn serve(shared: &Arc<Shared>) {
    let memory = &*shared.memory;
    let mut buffers = Buffers::default();
    let mut ring = shared.lock();
    while !shared.stopping() {
        let taken = if ring.broken {
            Ok(None)
        } else {
            ring.take(memory)
        };
        if let Some(Some(head)) = ring.unless_broken(taken) {
            let slow = shared.request_ns.load(Ordering::Relaxed) > SLOW_NS;
            if slow {
                // What is done already should not wait for what takes long.
                let signalled = ring.signal(memory);
                ring.unless_broken(signalled);
                Shared::pass_the_watch(shared, &mut ring);
            }
            drop(ring);
            let begin = Instant::now();
            let done = shared
                .executor
                .run(memory, shared.table, head, &mut buffers);
            shared.note_duration(begin.elapsed());
            ring = shared.lock();
            match done {
                Some(written) => {
                    let completed = ring.complete(memory, head, written);
                    ring.unless_broken(completed);
                }
                None => ring = park(shared, ring, head),
            }
        } else if ring.listening {
            ring = sleep(shared, ring);
        } else {
            ring = listen(shared, ring);
        }
    }
}

/// Keep a request for later: the gate is shut.
fn park<'a>(shared: &'a Shared, mut ring: MutexGuard<'a, Ring>, head: u16) -> MutexGuard<'a, Ring> {
    shared.keep(&mut ring, head);
    let signalled = ring.signal(&shared.memory);
    ring.unless_broken(signalled);
    drop(ring);
    let _ = wait(&[shared.stop.as_raw_fd()], Some(GATE_RETRY));
    shared.lock()
}

pub(super) fn sleep<'a>(
    shared: &'a Shared,
    mut ring: MutexGuard<'a, Ring>,
) -> MutexGuard<'a, Ring> {
    ring.sleeping += 1;
    while ring.woken == 0 && !shared.stopping() {
        ring = shared
            .wake
            .wait(ring)
            .unwrap_or_else(PoisonError::into_inner);
    }
    ring.sleeping -= 1;
    ring.woken = ring.woken.saturating_sub(1);
    ring
}

fn listen<'a>(shared: &'a Shared, mut ring: MutexGuard<'a, Ring>) -> MutexGuard<'a, Ring> {
    ring.listening = true;
    let broken = ring.broken;
    drop(ring);
    let (bell, stop) = (shared.doorbell.as_raw_fd(), shared.stop.as_raw_fd());
    let waited = if broken {
        wait(&[stop], None)
    } else {
        wait(&[bell, stop], None)
    };
    shared.answer_doorbell();
    let mut ring = shared.lock();
    ring.listening = false;
    if let Err(error) = waited {
        error!(crew = shared.name, %error, "an I/O thread cannot wait; its queue stops");
        ring.broken = true;
    }
    ring
}
