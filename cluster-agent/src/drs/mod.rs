//! Balancing as the operator sees and steers it.

mod clauses;
pub mod cli;
pub mod plan;
pub mod routes;
mod screen;
pub mod view;
