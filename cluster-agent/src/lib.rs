//! The daemon of each host and the operator's command.

pub mod admission;
pub mod api;
pub mod cli;
pub mod config;
pub mod console;
pub mod daemon;
pub mod driver;
pub mod drs;
pub mod guest_file;
pub mod guests;
pub mod history;
pub mod host_facts;
pub mod host_load;
pub mod http;
pub mod inventory;
pub mod mail;
pub mod maintenance;
pub mod migration;
pub mod network;
pub mod picture;
pub mod policy;
pub mod priority;
pub mod reader;
pub mod rules;
pub mod systemd;
