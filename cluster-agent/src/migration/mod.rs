//! Migrations as the cluster sees them: from the operator's word to both VMMs and back.
//!
//! ```text
//!   godwit ──► leader ──order──► source's agent ──asks──► target's agent ──spawns──► vmm receive
//!                                      │                                                │
//!                                      └──PUT /v1/migration──► vmm ══════ memory ═══════┘
//! ```

pub mod cli;
pub mod departure;
mod rehearsal;
pub mod routes;
pub mod view;
