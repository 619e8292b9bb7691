//! The daemon of each host and the operator's command.
