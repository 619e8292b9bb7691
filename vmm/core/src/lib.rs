//! What a guest is and how it may move: spec, control messages, lifecycle, compatibility
//! checks and the convergence policy. Pure: no clock, socket or thread.
#![no_std]

extern crate alloc;

pub mod compat;
pub mod control;
pub mod converge;
pub mod forecast;
pub mod history;
pub mod lifecycle;
pub mod mac;
pub mod migration;
pub mod spec;
pub mod standstill;
