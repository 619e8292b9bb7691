//! The agent's REST API: what people, scripts and the `godwit` command ask of a cluster.

mod create;
mod power;
pub mod routes;
pub mod views;
