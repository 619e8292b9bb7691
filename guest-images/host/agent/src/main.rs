//! The lab's agent inside an emulated host: `lab-agent /dev/vportNpM`.
//!
//! One thread reads frames; each command has a thread for each of its streams. Also
//! `lab-agent seed` (stirs standard input into the kernel's random pool and reseeds it, so that
//! clones of one template differ).

mod command;
mod port;
mod seed;

use std::process::ExitCode;

fn main() -> ExitCode {
    let argument = std::env::args().nth(1);
    let result = match argument.as_deref() {
        Some("seed") => seed::stir(),
        Some(path) => port::serve(path),
        None => Err("usage: lab-agent PORT | lab-agent seed".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-agent: {error}");
            ExitCode::FAILURE
        }
    }
}
