//! The simulator: real cores in a fake world, replayed from a seed.

pub mod drs;
pub mod drs_bench;
pub mod ha;
pub mod harness;
pub mod hbal;
pub mod lease;
pub mod queue;
pub mod rng;
pub mod skewed;
