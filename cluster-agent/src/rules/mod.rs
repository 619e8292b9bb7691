//! Rules about where guests run, as the operator sees and steers them.

pub mod cli;
pub mod routes;
mod words;
