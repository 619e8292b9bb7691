//! Runs every scenario in one lab of three hosts.

use std::process::ExitCode;

use lab::artefacts::catalogue;
use lab::{FileSystem, Settings};

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
    // Without clones a takeover waits longer, and for the dead host's lock.
    let ext4 = std::env::var_os("GODWIT_LAB_EXT4").is_some();
    let settings = Settings {
        name: "e2e".into(),
        datastore: Some(datastore),
        file_system: if ext4 {
            FileSystem::Ext4
        } else {
            FileSystem::Xfs
        },
        ..Settings::default()
    };
    lab::scenario::run(&settings, &scenarios)
}
