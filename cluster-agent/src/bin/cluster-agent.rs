//! The daemon of each host.
fn main() {}
