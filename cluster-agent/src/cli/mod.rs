//! The operator's command, `godwit`.

mod arguments;
mod run;
mod screen;
pub(crate) mod table;

pub use arguments::Arguments;
pub use run::{CliError, run};
