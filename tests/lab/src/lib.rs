//! Emulated hosts with real kernels, storage and cables.
//!
//! [`Lab::start`] brings up several QEMU machines, each with a stock Debian kernel and a real
//! `/dev/kvm`, a storage host that exports `NFSv4`, and two private networks whose cables can be
//! cut. Tests use this library ([`scenario`] runs a list of them), people the `lab` command.
//! docs/lab.md tells how.
//!
//! ```no_run
//! # fn main() -> lab::Result<()> {
//! let lab = lab::Lab::start(&lab::Settings { hosts: 2, ..lab::Settings::default() })?;
//! let [a, b] = lab.hosts() else { unreachable!() };
//! a.run("echo hello > /srv/vmstore/greeting")?;
//! assert_eq!(b.run("cat /srv/vmstore/greeting")?, "hello");
//! # Ok(()) }
//! ```

pub mod agent;
pub mod artefacts;
mod disks;
mod error;
pub mod host;
mod machine;
mod network;
mod process;
mod qmp;
pub mod scenario;
pub mod shell;
pub mod supervisor;
mod template;
mod wait;
mod world;

pub use disks::{FileSystem, empty_qcow2};
pub use error::{LabError, Result};
pub use host::{Cable, Direction, Host, Output};
pub use wait::{PATIENCE, eventually, eventually_within};
pub use world::{Lab, Settings, Storage};
