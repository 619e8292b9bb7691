//! Starting programs so that none outlives the lab, however the lab ends.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::thread;

use crate::error::During;
use crate::{LabError, Result};

type Request = (Command, mpsc::SyncSender<std::io::Result<Child>>);

/// Starts programs from one thread that lives as long as the lab: the kernel sends the death
/// signal of prctl(2) when the *thread* that forked ends, not when its process does.
#[derive(Clone, Debug)]
pub struct Spawner(mpsc::SyncSender<Request>);

impl Spawner {
    /// Starts the thread.
    pub fn new() -> Self {
        let (requests, inbox) = mpsc::sync_channel::<Request>(16);
        thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        Self(requests)
    }

    /// Starts `command`; it is killed when this process ends or the last [`Spawner`] is dropped.
    pub fn spawn(&self, mut command: Command) -> Result<Child> {
        let program = command.get_program().to_owned();
        let lab = std::process::id();
        command.process_group(0);
        // SAFETY: between fork and exec only async-signal-safe calls are made: prctl, getppid
        // and _exit, none of which touches memory of the parent.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                if libc::getppid().cast_unsigned() != lab {
                    libc::_exit(1);
                }
                Ok(())
            });
        }
        let (reply, answer) = mpsc::sync_channel(1);
        let gone = || LabError::from("the thread that starts programs is gone");
        self.0.send((command, reply)).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?.during("start", program)
    }
}

/// Runs a tool to its end; its error text becomes the error.
pub fn run_tool(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().during("run", &program)?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(LabError::Tool {
            program,
            status: output.status,
            message,
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn what_the_lab_started_dies_with_it() {
        let spawner = Spawner::new();
        let mut command = Command::new("sleep");
        command.arg("1000");
        let mut child = spawner.spawn(command).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        // The thread that forked it ends, as it does when the process is killed.
        drop(spawner);
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
