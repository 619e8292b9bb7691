//! The lease protocol and the records it writes: pure, without clock, thread or I/O.
//!
//! Time and observations come in as values, actions go out as values; the shell in
//! `shared-storage` carries them out, the simulator in `tests/sim` replays them.
//!
//! In one breath: every host rewrites one heartbeat record ([`beat`]); each write that
//! storage acknowledged lets the host act a little longer ([`hold`]); others that have
//! watched the record stand still for long enough ([`observer`], [`timing`]) may create the
//! next epoch of a lease ([`lease`], [`record`]).
#![no_std]

extern crate alloc;

pub mod beat;
mod codec;
pub mod hold;
pub mod lease;
pub mod name;
pub mod observer;
pub mod record;
pub mod timing;
