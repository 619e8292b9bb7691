//! Gets a processor's thread out of the guest: `immediate_exit` and a signal
//! (api.rst, "KVM_RUN", `immediate_exit`).
//!
//! Setting the flag first closes the gap: a thread that is not in the guest when the signal
//! arrives finds the flag when it next tries to enter.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_ioctls::VcpuFd;

/// The flag in the page that a processor shares with the kernel.
#[derive(Clone, Copy)]
pub struct ImmediateExit(*const AtomicU8);

// SAFETY: the pointer leads into the `kvm_run` mapping, which may be written by any thread;
// the flag is only ever accessed atomically.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    /// The flag of `fd`, which must outlive every use: the owner's thread holds `fd` until
    /// it is told to quit, and whoever holds this tells it.
    pub fn new(fd: &mut VcpuFd) -> Self {
        Self((&raw const fd.get_kvm_run().immediate_exit).cast())
    }

    /// The next entry into the guest comes back at once.
    pub fn set(self) {
        self.flag().store(1, Ordering::SeqCst);
    }

    /// The next entry into the guest enters it. Ordered before whatever is read next, so
    /// that a request to park is seen here or there.
    pub fn clear(self) {
        self.flag().swap(0, Ordering::SeqCst);
    }

    fn flag(&self) -> &AtomicU8 {
        // SAFETY: see `new`; the mapping is alive and a byte is always aligned.
        unsafe { &*self.0 }
    }
}

fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn nothing(_: libc::c_int) {}

/// Make the signal interrupt system calls and do nothing else.
pub fn install_handler() -> io::Result<()> {
    // SAFETY: a zeroed sigaction is valid; the handler is async-signal-safe as it is empty.
    // Without SA_RESTART the ioctl comes back with EINTR.
    let answer = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(signal(), &raw const action, std::ptr::null_mut())
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Signal a thread that has not been joined.
pub fn send(thread: libc::pthread_t) {
    // SAFETY: the caller holds the thread's handle, so the id is valid.
    unsafe { libc::pthread_kill(thread, signal()) };
}
