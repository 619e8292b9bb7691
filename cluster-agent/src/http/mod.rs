//! HTTP and JSON, the one language that agents, VMMs and people's tools speak here.
//!
//! Over a Unix socket within a host, over mutual TLS between hosts.

pub mod client;
pub mod connection;
pub mod gate;
pub mod refusals;
pub mod server;
pub mod wish;

/// Largest body that is read from anybody, in bytes.
pub const BODY_BYTES_MAX: usize = 8 << 20;
