//! The simulator: real cores in a fake world, replayed from a seed.
