//! Disk images: raw and qcow2 files under the lock and the gate.
//!
//! [`Disk`] is what a virtual disk does I/O on. The rest makes images ([`create`],
//! [`create_overlay`], [`duplicate`], [`copy`], [`reflink`]), changes their size ([`resize`]) and
//! looks at them ([`info`], [`check`], [`layers`]). Every path may be confined to a datastore.

mod chain;
mod check;
mod confine;
mod copy;
mod create;
mod disk;
mod error;
mod file;
mod flights;
mod format;
mod header;
mod identity;
mod info;
pub(crate) mod lock;
mod place;
#[cfg(test)]
mod tests;

pub use chain::{MAX_BACKING_IMAGES, layers};
pub use check::{CheckReport, check};
pub use copy::{CopyProgress, Made, copy, duplicate};
pub use create::{MAX_DISK_BYTES, create, create_overlay, reflink, resize};
pub use disk::{Disk, DiskOptions, SECTOR_BYTES};
pub use error::{DiskError, ImageError};
pub use flights::{Flights, Landing};
pub use format::Format;
pub use identity::ImageIdentity;
pub use info::{ImageInfo, info};
