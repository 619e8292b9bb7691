//! What goes wrong in the lab.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// A lab operation's result.
pub type Result<T, E = LabError> = std::result::Result<T, E>;

/// Why the lab could not do something.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file or socket operation failed.
    #[error("cannot {act} {path}: {cause}", path = .object.display())]
    File {
        /// What was tried.
        act: &'static str,
        /// On what.
        object: PathBuf,
        /// Why it failed.
        cause: std::io::Error,
    },
    /// A program of the build machine is missing or failed.
    #[error("{program} failed ({status}): {message}")]
    Tool {
        /// Which program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        message: String,
    },
    /// A command inside a host failed.
    #[error("on host {host}, `{command}` ended with code {code}: {message}")]
    Command {
        /// Which host.
        host: String,
        /// The command.
        command: String,
        /// Its exit code; 128 and the signal's number if it was killed by one.
        code: i32,
        /// The end of what it wrote.
        message: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {seconds} s", seconds = .limit.as_secs())]
    TooLate {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// The host is switched off.
    #[error("host {0} is switched off; power it on first")]
    Off(String),
    /// The agent's port failed.
    #[error("lost the agent of host {host}: {cause}")]
    Agent {
        /// Which host.
        host: String,
        /// Why.
        cause: lab_agent::frame::FrameError,
    },
    /// QEMU refused a command.
    #[error("QEMU refuses {command}: {message}")]
    Qmp {
        /// The QMP command.
        command: String,
        /// What QEMU said.
        message: String,
    },
    /// This machine cannot run the lab at all; tests skip.
    #[error("the lab cannot run here: {0}")]
    Unavailable(String),
    /// Anything else, said in words.
    #[error("{0}")]
    Other(String),
}

impl From<String> for LabError {
    fn from(what: String) -> Self {
        Self::Other(what)
    }
}

impl From<&str> for LabError {
    fn from(what: &str) -> Self {
        Self::Other(what.into())
    }
}

/// Names the act and the file an I/O error belongs to.
pub(crate) trait During<T> {
    /// `cannot {act} {object}: ...`
    fn during(self, act: &'static str, object: impl Into<PathBuf>) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> During<T> for std::result::Result<T, E> {
    fn during(self, act: &'static str, object: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|cause| LabError::File {
            act,
            object: object.into(),
            cause: cause.into(),
        })
    }
}
