//! The daemon of each host.

use std::process::ExitCode;

use clap::Parser;
use cluster_agent::config::Config;
use cluster_agent::{daemon, priority};
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let config = Config::parse();
    let filter = EnvFilter::try_from_env("GODWIT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    // Before the runtime starts its threads, which inherit it.
    priority::before_guests();
    let ran = match Runtime::new() {
        Ok(runtime) => runtime.block_on(daemon::run(config)),
        Err(error) => {
            eprintln!("cluster-agent: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster-agent: {error}");
            ExitCode::FAILURE
        }
    }
}
