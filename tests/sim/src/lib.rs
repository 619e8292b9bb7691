//! The simulator: real cores in a fake world, replayed from a seed.

pub mod harness;
pub mod lease;
pub mod queue;
pub mod rng;
