//! Trust starts at the datastore: whoever may mount it as root may join the cluster.
//!
//! `trust/authority.pem` on the datastore holds the cluster's own certificate authority (its
//! private key, then its certificate). The first agent creates it, the next ones find it;
//! each host mints a certificate of its own from it and keeps that in a local directory,
//! from which agents and migrations build their mutual TLS ([`tls`]).

pub mod authority;
pub mod identity;
pub mod tls;

pub use authority::Authority;
pub use identity::Identity;

use std::io;
use std::path::PathBuf;

/// Every certificate of the cluster carries this name beside its host's: peers ask for it
/// when they want any member, and the authority already proves which cluster.
pub const MEMBER_NAME: &str = "member.godwit";

/// Why trust could not be established.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file of the trust could not be read or written.
    #[error("cannot {act} {}: {source}", path.display())]
    File {
        /// `read`, `write`, `create`.
        act: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the trust does not hold what it should.
    #[error(
        "{} does not hold {expected}; restore it from a backup, or remove it to have it made anew",
        path.display()
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        expected: &'static str,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate for {name}: {source}")]
    Mint {
        /// Whose certificate.
        name: String,
        /// What the library said.
        source: rcgen::Error,
    },
    /// The TLS library refuses the certificates.
    #[error("cannot set up TLS from {}: {source}", path.display())]
    Tls {
        /// The directory the certificates came from.
        path: PathBuf,
        /// What the library said.
        source: rustls::Error,
    },
}
