//! Runs every scenario in one lab of three hosts.

use std::process::ExitCode;

fn main() -> ExitCode {
    lab::scenario::run(
        &lab::Settings {
            name: "e2e".into(),
            ..lab::Settings::default()
        },
        e2e::ALL,
    )
}
