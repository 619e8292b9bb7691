//! Runs every scenario in one lab of three hosts.

use std::process::ExitCode;

use lab::Settings;
use lab::artefacts::catalogue;

fn main() -> ExitCode {
    let mut images = vec!["busybox", "debian"];
    let mut scenarios = e2e::ALL.to_vec();
    if std::env::var_os("GODWIT_LAB_STOCK").is_some() {
        images.push("stock");
        scenarios.extend(e2e::ASKED_FOR);
    }
    let datastore = match catalogue(&images) {
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
    lab::scenario::run(&settings, &scenarios)
}
