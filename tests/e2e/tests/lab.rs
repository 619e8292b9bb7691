//! Runs every scenario in one lab of three hosts.

use std::process::ExitCode;

use lab::Settings;
use lab::artefacts::catalogue;

fn main() -> ExitCode {
    let datastore = match catalogue(&["busybox", "debian"]) {
        Ok(datastore) => datastore,
        Err(error) => {
            println!("FAILED to make the guests' images: {error}");
            return ExitCode::FAILURE;
        }
    };
    let settings = Settings {
        name: "e2e".into(),
        datastore: Some(datastore),
        ..Settings::default()
    };
    lab::scenario::run(&settings, e2e::ALL)
}
