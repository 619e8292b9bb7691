//! Leases on real files.

mod files;
mod gate;
mod held;
pub(crate) mod local;

pub use files::{LeaseFiles, Seen};
pub use gate::LeaseGate;
pub use held::{HandOver, HeldLease, Notice};
pub use storage_core::lease::{Ending, Grounds, Held, Outcome, Refusal};
pub use storage_core::record::{Grant, Holder, LeaseRecord};
