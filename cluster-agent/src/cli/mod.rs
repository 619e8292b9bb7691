//! The operator's command, `godwit`.

mod arguments;
mod colour;
mod follow;
mod guests;
mod remote;
mod run;
pub(crate) mod screen;
pub(crate) mod table;
mod wide;

pub use arguments::Arguments;
pub use run::{Agent, CliError, print, print_json, run};
