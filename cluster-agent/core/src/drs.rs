//! Balancing as the leader does it: plan, recommend, carry out.

mod settings;

pub use settings::{Automation, DrsSettings};
