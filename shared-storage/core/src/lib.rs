//! The lease protocol and the records it writes: pure, without clock, thread or I/O.
//!
//! Time and observations come in as values, actions go out as values; the shell in
//! `shared-storage` carries them out, the simulator in `tests/sim` replays them.
#![no_std]

extern crate alloc;
