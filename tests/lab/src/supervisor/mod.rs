//! The process that holds a lab started by `lab up`, and the conversation with it.
//!
//! One connection per act: a line of JSON asks ([`Request`]), frames of the agent's kind answer:
//! output, error text, and the end with an exit code. A running command's input goes the same way
//! back, so that `lab exec` feels like ssh.

mod client;
mod serve;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::artefacts::build_directory;
use crate::error::During;
use crate::host::{Cable, Direction};
pub use client::{ask, is_up};
pub use serve::serve;

/// What a person may ask of a running lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// A table of the hosts.
    Status,
    /// Run a command in a host.
    Exec {
        /// Which host.
        host: String,
        /// Program and arguments.
        command: Vec<String>,
    },
    /// Copy a file of this machine into a host.
    Push {
        /// Which host.
        host: String,
        /// Absolute path here.
        from: PathBuf,
        /// Path there.
        to: String,
    },
    /// Write a file of a host to standard output.
    Pull {
        /// Which host.
        host: String,
        /// Path there.
        path: String,
    },
    /// Cut a cable, or heal it.
    Cut {
        /// Which host.
        host: String,
        /// Which cable; both if none is named.
        cable: Option<Cable>,
        /// Which way.
        direction: Direction,
        /// Whether to cut; otherwise heal.
        cut: bool,
    },
    /// Something that befalls one host.
    Fault {
        /// Which host.
        host: String,
        /// What.
        fault: Fault,
    },
    /// Cut the power of the storage host, start it again and serve.
    RestartStorage,
    /// Undo every fault.
    Restore,
    /// Build our programs again and put them into every host.
    Refresh,
    /// Copy the logs inside the hosts to `build/lab/NAME/`.
    Logs,
    /// Where the serial console's socket of a host is.
    Console {
        /// Which host.
        host: String,
    },
    /// End everything.
    Down,
}

/// What can befall a host.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// [`Host::freeze`]
    Freeze,
    /// [`Host::thaw`]
    Thaw,
    /// [`Host::stop_clock`]
    StopClock,
    /// [`Host::start_clock`]
    StartClock,
    /// [`Host::power_off`]
    PowerOff,
    /// [`Host::power_on`], then the datastore is mounted or served.
    PowerOn,
}

/// A directory kept open, so that sockets in it are reached by a path short enough for the
/// kernel (108 bytes) wherever the workspace lies.
struct ShortPath(File, String);

impl ShortPath {
    fn to_socket(name: &str) -> Result<Self> {
        let directory = build_directory().join("lab");
        std::fs::create_dir_all(&directory).during("create", &directory)?;
        Ok(Self(
            File::open(&directory).during("open", &directory)?,
            format!("{name}.socket"),
        ))
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{}", self.0.as_raw_fd(), self.1))
    }
}
