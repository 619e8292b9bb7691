//! The cluster's decisions: health, failover, admission, placement, rules and balance.
//! Pure: no clock, socket or thread; integer arithmetic; no random map order.
#![no_std]

extern crate alloc;

pub mod model;
