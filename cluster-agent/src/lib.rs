//! The daemon of each host and the operator's command.

pub mod api;
pub mod cli;
pub mod history;
pub mod host_facts;
pub mod http;
pub mod network;
