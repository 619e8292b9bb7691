//! While a guest stands still for a migration, nothing on its host is more urgent: a processor that
//! has worked all the time is otherwise the last that the scheduler lets stop, and whoever has
//! copied memory all the time the last that it lets go on (10 ms were seen, for work of 0.1 ms).
//!
//! Needs CAP_SYS_NICE; without it all goes on as it did (sched(7)).

use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Above every ordinary thread, below all that asked for more.
const PRIORITY: libc::c_int = 1;

/// As long as it lives, this thread goes before all ordinary ones. Threads that it starts do not.
#[derive(Debug)]
pub struct Urgent {
    was_raised: bool,
    /// It is about the thread that made it.
    here: PhantomData<*const ()>,
}

impl Urgent {
    /// From now on.
    pub fn new() -> Self {
        Self {
            was_raised: raise(THIS_THREAD),
            here: PhantomData,
        }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        if self.was_raised {
            lower(THIS_THREAD);
        }
    }
}

/// What system calls take for the calling thread.
pub const THIS_THREAD: libc::pid_t = 0;

/// Let a thread of this process go before all ordinary ones, until [`lower`]. Was it ordinary, and
/// is no more?
pub fn raise(thread: libc::pid_t) -> bool {
    // SAFETY: no memory is involved.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, thread) };
    policy == libc::c_long::from(libc::SCHED_OTHER)
        && set(
            thread,
            libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK,
            PRIORITY,
        )
}

/// Let it be ordinary again; how nice it is stays as it was.
pub fn lower(thread: libc::pid_t) {
    set(thread, libc::SCHED_OTHER, 0);
}

/// By system call, as not every C library passes it on.
fn set(thread: libc::pid_t, policy: libc::c_int, priority: libc::c_int) -> bool {
    // SAFETY: all fields of the structure are integers.
    let mut parameters: libc::sched_param = unsafe { MaybeUninit::zeroed().assume_init() };
    parameters.sched_priority = priority;
    // SAFETY: the structure lives through the call, which only reads it.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            thread,
            policy,
            &raw const parameters,
        )
    };
    answer == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> libc::c_long {
        // SAFETY: no memory is involved.
        let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, THIS_THREAD) };
        policy & !libc::c_long::from(libc::SCHED_RESET_ON_FORK)
    }

    #[test]
    fn a_thread_is_urgent_for_a_while_and_what_it_starts_never() {
        let ordinary = libc::c_long::from(libc::SCHED_OTHER);
        let urgent = Urgent::new();
        if !urgent.was_raised {
            ground::skip("needs CAP_SYS_NICE");
            return;
        }
        assert_eq!(policy(), libc::c_long::from(libc::SCHED_FIFO));
        assert_eq!(std::thread::spawn(policy).join().unwrap(), ordinary);
        {
            // One within another changes nothing.
            let _inner = Urgent::new();
        }
        assert_ne!(policy(), ordinary);
        drop(urgent);
        assert_eq!(policy(), ordinary);
    }
}
