//! The operator's command, `godwit`.

mod arguments;
mod run;
mod screen;
mod table;

pub use arguments::Arguments;
pub use run::{CliError, run};
