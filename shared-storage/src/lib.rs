//! The datastore: guest directories, disk images, heartbeats and leases on real files.

pub mod atomic;
pub mod capability;
pub mod cli;
pub mod clock;
mod cluster_file;
pub mod datastore;
pub mod document;
pub mod error;
pub mod fence;
pub mod gate;
pub mod guest_dir;
pub mod heartbeat;
pub mod image;
pub mod keeper;
pub mod lease;
mod leftovers;
pub mod namesake;
pub mod page;
pub mod patience;
pub mod state;
pub mod trust;
pub mod undelegated;
pub mod watcher;

pub use clock::{DEFAULT_RUN_DIR, LocalHost};
pub use cluster_file::ClusterFile;
pub use datastore::Datastore;
pub use document::Revised;
pub use error::StoreError;
pub use guest_dir::GuestDir;
pub use keeper::{Keeper, Role};
pub use state::StateStore;
pub use watcher::{Sighting, Watcher};
