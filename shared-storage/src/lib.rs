//! The datastore: guest directories, disk images, heartbeats and leases on real files.

pub mod gate;
pub mod image;
pub mod trust;
