//! Threads that are kept: one that is through with its work waits for more. Devices stop and start
//! on both sides of a migration while the guest stands still, and waking a thread takes a fraction
//! of making one.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

/// No more of them wait.
const IDLE_MAX: usize = 64;
/// What the kernel shows of a name, with a zero at its end (prctl(2), `PR_SET_NAME`).
const NAME_BYTES: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// Where those are reached that wait.
static IDLE: Mutex<Vec<Sender<Job>>> = Mutex::new(Vec::new());

/// Some work that a thread does.
#[derive(Debug)]
pub struct Task<T>(Receiver<T>);

impl<T> Task<T> {
    /// Wait for its end; `None` if it panicked.
    pub fn join(self) -> Option<T> {
        self.0.recv().ok()
    }
}

/// Have a thread that is called `name` (15 bytes are shown by the kernel) do `work`.
pub fn spawn<T: Send + 'static>(
    name: String,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Task<T>> {
    let (answer, result) = sync_channel(1);
    let job: Job = Box::new(move || {
        call_this_thread(&name);
        // Nobody waits for some of it.
        let _ = answer.send(work());
    });
    let waiting = idle().pop();
    match waiting {
        // It waits until it is told, which only we do.
        Some(waiting) => drop(waiting.send(job)),
        None => start(Some(job))?,
    }
    Ok(Task(result))
}

/// Let so many threads wait for work at least.
pub fn keep(count: usize) -> io::Result<()> {
    let missing = count.min(IDLE_MAX).saturating_sub(idle().len());
    (0..missing).try_for_each(|_| start(None))
}

fn start(first: Option<Job>) -> io::Result<()> {
    let (orders, inbox) = channel();
    let waits = first.is_none().then(|| orders.clone());
    thread::Builder::new().spawn(move || serve(first, &orders, &inbox))?;
    idle().extend(waits);
    Ok(())
}

fn serve(first: Option<Job>, orders: &Sender<Job>, inbox: &Receiver<Job>) {
    let mut waits = first.is_none();
    let mut next = first;
    loop {
        if let Some(job) = next.take() {
            job();
        }
        if !waits {
            let mut idle = idle();
            if idle.len() >= IDLE_MAX {
                return;
            }
            idle.push(orders.clone());
        }
        next = inbox.recv().ok();
        waits = false;
    }
}

fn idle() -> MutexGuard<'static, Vec<Sender<Job>>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn call_this_thread(name: &str) {
    let mut bytes = [0u8; NAME_BYTES];
    let shown = name.len().min(NAME_BYTES - 1);
    bytes[..shown].copy_from_slice(&name.as_bytes()[..shown]);
    // SAFETY: the name ends with a zero byte and lives through the call, which copies it.
    unsafe { libc::prctl(libc::PR_SET_NAME, bytes.as_ptr()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> thread::ThreadId {
        thread::current().id()
    }

    #[test]
    fn work_is_done_and_its_end_is_told() {
        let tasks = [1, 2, 3].map(|n| spawn(format!("work{n}"), move || n * 2).unwrap());
        assert_eq!(tasks.map(|task| task.join().unwrap()), [2, 4, 6]);
        let panics = spawn("panics".into(), || panic!("on purpose")).unwrap();
        assert_eq!(panics.join(), None::<()>);
        let named = spawn("a-name-that-is-too-long".into(), || {
            std::fs::read_to_string("/proc/thread-self/comm").unwrap()
        });
        assert_eq!(named.unwrap().join().unwrap().trim(), "a-name-that-is-");
    }

    #[test]
    fn a_thread_that_waits_is_taken_before_one_is_made() {
        keep(3).unwrap();
        // Other tests of this process may take those that wait: some time one comes back to us.
        let mut seen = std::collections::HashSet::new();
        let again = (0..10_000).any(|_| !seen.insert(spawn("again".into(), id).unwrap().join()));
        assert!(again);
    }
}
