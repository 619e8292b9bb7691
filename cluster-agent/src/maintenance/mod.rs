//! Taking hosts out of service without their guests noticing.

pub mod cli;
pub mod routes;
