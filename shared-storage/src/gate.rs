//! The right to write, asked for before every batch of block I/O.
//!
//! Whoever runs a guest may let bytes out only while its lease holds. Disk images ask
//! their gate right before each write reaches the file, however deep inside a format
//! driver that write was born.

use std::fmt::Debug;

/// The gate is shut: the deadline of the lease has passed and no I/O may be issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lease of this guest has run out on this host: no I/O may be issued")]
pub struct Shut;

/// Says whether I/O may be issued at this instant.
///
/// Implementations are called on every request from every queue thread and must not block.
pub trait Gate: Debug + Send + Sync {
    /// Permission to issue I/O now, or [`Shut`].
    fn pass(&self) -> Result<(), Shut>;
}

/// The gate of a guest without a lease (`vmm run` without a datastore): always open.
#[derive(Debug, Clone, Copy, Default)]
pub struct AlwaysOpen;

impl Gate for AlwaysOpen {
    fn pass(&self) -> Result<(), Shut> {
        Ok(())
    }
}
