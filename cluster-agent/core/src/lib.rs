//! The cluster's decisions: health, failover, admission, placement, rules and balance.
//! Pure: no clock, socket or thread; integer arithmetic; no random map order.
#![no_std]

extern crate alloc;

pub mod admission;
pub mod balance;
pub mod brain;
pub mod demand;
pub mod dependencies;
pub mod drs;
pub mod evacuate;
pub mod event;
pub mod failover;
pub mod health;
pub mod leader;
mod leading;
mod member;
pub mod messages;
pub mod migration_cost;
pub mod model;
pub mod moves;
pub mod observation;
pub mod own_needs;
pub mod owners;
pub mod placement;
pub mod rules;
pub mod score;
pub mod settings;
pub mod whatif;
