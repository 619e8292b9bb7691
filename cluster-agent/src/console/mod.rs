//! A guest's serial console, from any host of the cluster.
//!
//! ```text
//!   godwit ══ agent asked ══(mutual TLS)══ agent of the guest's host ══ console socket of its VMM
//! ```
//!
//! A connection is asked for with an HTTP upgrade and carries plain bytes from then on.

pub mod cli;
pub mod routes;
mod terminal;

/// What is asked for in the `Upgrade` header.
pub const PROTOCOL: &str = "godwit-console";
