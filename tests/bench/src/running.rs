//! A process of a hypervisor that does not outlive its measurement.

use std::process::{Child, ChildStderr};

/// Ends what it holds, whatever happens.
pub struct Running(pub Child);

impl Running {
    /// Its process.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Its standard error, if that is a pipe that nobody took.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.0.stderr.take()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
