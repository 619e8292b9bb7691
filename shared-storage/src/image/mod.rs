//! Disk images: raw and qcow2 files under the lock and the gate.
//!
//! [`Disk`] is what a virtual disk does I/O on.

mod confine;
mod disk;
mod error;
mod file;
mod header;
mod lock;

pub use disk::{Disk, DiskOptions, Format};
pub use error::{DiskError, ImageError};
