//! A thread that serves one queue: waits for the doorbell, serves, and gives the queue back.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::{debug, error};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ActiveQueue;
use crate::memory::GuestMemory;
use crate::threads::{self, Task};

/// What a queue's server wants after a pass over the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Wait for the doorbell.
    Wait,
    /// Wait for the doorbell or until this descriptor is readable.
    WaitWith(RawFd),
    /// Try again after this time, or earlier if the doorbell rings.
    Retry(Duration),
    /// The rings are unusable; do nothing until the driver resets the device.
    Broken,
}

/// Serves one queue, on the worker's thread.
pub trait Serve: Send + 'static {
    /// Serve what is available. Returns early, with everything in hand finished or put
    /// back, once `stopping` says so.
    fn serve(&mut self, queue: &mut ActiveQueue, memory: &GuestMemory, stopping: &Stopping)
    -> Next;
}

/// Whether the worker has been asked to stop.
pub struct Stopping(Arc<AtomicBool>);

impl Stopping {
    /// For calling a server on the test's own thread.
    #[cfg(test)]
    pub(crate) fn never() -> Self {
        Self(Arc::default())
    }

    /// True once [`Worker::stop`] was called.
    pub fn now(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A running queue thread.
pub struct Worker {
    task: Task<ActiveQueue>,
    stop: EventFd,
    stopping: Arc<AtomicBool>,
}

impl Worker {
    /// Start a thread called `name` (at most 15 bytes are shown by the kernel).
    pub fn spawn(
        name: String,
        mut queue: ActiveQueue,
        memory: Arc<GuestMemory>,
        mut server: impl Serve,
    ) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let stopped = stop.try_clone()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let flag = Stopping(stopping.clone());
        let task = threads::spawn(name, move || {
            run(&mut queue, &memory, &mut server, &stopped, &flag);
            queue
        })?;
        Ok(Self {
            task,
            stop,
            stopping,
        })
    }

    /// Ask the thread to stop, without waiting.
    pub fn ask_to_stop(&self) {
        self.stopping.store(true, Ordering::Release);
        let _ = self.stop.write(1);
    }

    /// Stop the thread and take its queue back, nothing in flight. `None` if it panicked.
    pub fn stop(self) -> Option<ActiveQueue> {
        self.ask_to_stop();
        self.task.join()
    }
}

fn run(
    queue: &mut ActiveQueue,
    memory: &GuestMemory,
    server: &mut impl Serve,
    stop: &EventFd,
    stopping: &Stopping,
) {
    let mut next = Next::Wait;
    while !stopping.now() {
        let doorbell = queue.doorbell.as_raw_fd();
        let stop = stop.as_raw_fd();
        let waited = match next {
            Next::Wait => wait(&[doorbell, stop], None),
            Next::WaitWith(other) => wait(&[doorbell, stop, other], None),
            Next::Retry(pause) => wait(&[doorbell, stop], Some(pause)),
            Next::Broken => wait(&[stop], None),
        };
        if let Err(error) = waited {
            error!(%error, "a queue thread cannot wait; its queue stops");
            next = Next::Broken;
        }
        if stopping.now() {
            return;
        }
        let _ = queue.doorbell.read();
        if next != Next::Broken {
            next = server.serve(queue, memory, stopping);
            if next == Next::Broken {
                debug!(queue = queue.index, "the driver broke its queue");
            }
        }
    }
}

/// Wait until one of `descriptors` is readable or `timeout` has passed; tells which are.
pub fn wait(descriptors: &[RawFd], timeout: Option<Duration>) -> io::Result<Vec<RawFd>> {
    let mut polls: Vec<libc::pollfd> = descriptors
        .iter()
        .map(|fd| libc::pollfd {
            fd: *fd,
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    let millis = timeout.map_or(-1, |time| {
        i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
    });
    // SAFETY: `polls` is a live array of `polls.len()` entries for the length of the call.
    let result = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, millis) };
    if result >= 0 {
        let ready = polls.iter().filter(|poll| poll.revents != 0);
        return Ok(ready.map(|poll| poll.fd).collect());
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted {
        Ok(Vec::new())
    } else {
        Err(error)
    }
}
