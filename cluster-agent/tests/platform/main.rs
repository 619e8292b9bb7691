//! One agent as a process, seen from outside: by systemd, by operators near and far.
//!
//! Needs the right to make a bridge; says so and passes where that is missing.

mod agent;
mod operators;
mod refusals;
mod systemd;
mod watching;
