//! The operator's command.

use std::process::ExitCode;

use clap::Parser;
use cluster_agent::cli::{Arguments, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("godwit: {error}");
            ExitCode::FAILURE
        }
    }
}
