//! The agent's REST API: what people, scripts and the `godwit` command ask of a cluster.

pub mod answer;
mod check;
mod clone;
mod cluster;
mod create;
pub mod edit;
mod lifecycle;
mod off;
mod power;
pub mod routes;
pub mod shared;
pub mod views;
