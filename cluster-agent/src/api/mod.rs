//! The agent's REST API: what people, scripts and the `godwit` command ask of a cluster.

mod check;
mod clone;
mod create;
pub mod edit;
mod off;
mod power;
pub mod routes;
pub mod views;
