//! `vmm completions`.

use clap::{Args, Command};
use clap_complete::Shell;

#[derive(Debug, Args)]
pub struct Arguments {
    /// The shell.
    shell: Shell,
}

pub fn main(arguments: &Arguments, command: &mut Command) {
    clap_complete::generate(arguments.shell, command, "vmm", &mut std::io::stdout());
}
