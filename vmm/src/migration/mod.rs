//! Live migration: a running guest moves to another host's VMM.
//!
//! Source and target mirror each other, phase by phase:
//!
//! ```text
//!   source                                target
//!   Hello (spec, lease?)        ──►       check, build the whole machine
//!                               ◄──       Accept (holder) | Refuse
//!   Pages ... End(1), Round(1)  ══►       write into memory
//!                               ◄──       RoundDone(1)
//!   ... until converged, then stop:
//!   Pages ... End(n), State     ══►       pour in the state, hash memory
//!                               ◄──       Ready
//!   commit: the lease changes hands
//!   Commit                      ──►       adopt the lease, run
//!                               ◄──       Running
//! ```
//!
//! A dry run ends after some rounds of memory, with Abort, and the target forgets the guest.
//!
//! Before the commit any failure means that the source goes on as if nothing had been. After
//! it the source never runs the guest again. If the outcome of the commit is unknown, the
//! lease alone decides.

pub mod arrival;
pub mod departure;
pub mod dirty;
mod fault;
pub mod joining;
pub mod lifeline;
pub mod pages;
mod rehearsal;
mod round;
pub mod session;
pub mod source;
mod standstill;
pub mod stream;
pub mod target;
mod throttle;
pub mod usher;
pub mod watch;
pub mod wire;

use std::io::{Error, ErrorKind};

use crate::kvm::KvmError;

/// Why a migration failed, in one line.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The connection.
    #[error("cannot {act} {peer}: {source}")]
    Connection {
        /// What was to be done.
        act: &'static str,
        /// The other side.
        peer: String,
        /// Why not.
        source: Error,
    },
    /// Nobody answers there.
    #[error("cannot connect to {peer}: {source}; does `vmm receive` wait there?")]
    Unreachable {
        /// Where.
        peer: String,
        /// Why not.
        source: Error,
    },
    /// The other side says no.
    #[error("the other side refuses: {0}")]
    Refused(String),
    /// The other side does not follow the protocol.
    #[error("the other side broke the migration protocol: {0}")]
    Protocol(String),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Something here.
    #[error("{0}")]
    Here(String),
    /// The operator wanted no more.
    #[error("it was cancelled")]
    Cancelled,
    /// The switch-over took too long.
    #[error("the target was not ready in time, and the guest would have stood still for too long")]
    TooSlow,
    /// It would stand still for longer than the operator allows.
    #[error(
        "the guest would stand still for about {} ms, {} ms of them whatever it does, and no \
         round makes that shorter; allow it with --accept-longer, or try when it is less busy",
        predicted_us / 1000, fixed_us / 1000
    )]
    TooLong {
        /// Blackout that it would have taken.
        predicted_us: u64,
        /// What of it memory has no part in.
        fixed_us: u64,
    },
}

impl MigrationError {
    fn connection(
        act: &'static str,
        peer: &(impl ToString + ?Sized),
    ) -> impl FnOnce(Error) -> Self {
        let peer = peer.to_string();
        move |source| {
            // The standard library says that a buffer was not filled.
            let source = match source.kind() {
                ErrorKind::UnexpectedEof => Error::new(ErrorKind::UnexpectedEof, "it has hung up"),
                _ => source,
            };
            Self::Connection { act, peer, source }
        }
    }
}
