//! The command `godwit-store`: what it says, and with which exit code.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn store(root: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit-store"));
    command.arg("--datastore").arg(root).args(arguments);
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    let bytes = if output.stdout.is_empty() {
        &output.stderr
    } else {
        &output.stdout
    };
    String::from_utf8_lossy(bytes).into_owned()
}

/// A datastore with one guest that nobody ever held.
fn with_a_guest() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    assert!(
        store(dir.path(), &["init", "--name", "demo"])
            .status
            .success()
    );
    assert!(
        store(dir.path(), &["drill", "prepare", "web1"])
            .status
            .success()
    );
    dir
}

#[test]
fn a_directory_that_is_no_datastore_is_named_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let output = store(dir.path(), &["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("make one with `godwit-store init`"),
        "{}",
        said(&output)
    );
}

#[test]
fn status_tells_what_the_file_system_can_do() {
    let dir = with_a_guest();
    let output = store(dir.path(), &["status", "--json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["cluster"]["name"], "demo");
    assert_eq!(status["file_system"]["hard_links"], true);
    assert!(status["file_system"]["takeover_ms"].as_u64().unwrap() < 4000);
    assert!(said(&store(dir.path(), &["status"])).contains("takeover"));
}

#[test]
fn guests_and_their_leases_are_listed() {
    let dir = with_a_guest();
    assert!(said(&store(dir.path(), &["guests"])).contains("free (never held)"));
    assert!(said(&store(dir.path(), &["lease", "show", "web1"])).contains("never held"));
    let release = store(dir.path(), &["lease", "release", "web1", "--force"]);
    assert_eq!(release.status.code(), Some(1));
    assert!(said(&release).contains("nobody holds web1"));
    let missing = store(dir.path(), &["lease", "show", "web2"]);
    assert!(
        said(&missing).contains("there is no guest web2"),
        "{}",
        said(&missing)
    );
}

#[test]
fn damage_is_found_and_a_newer_version_refused() {
    let dir = with_a_guest();
    assert!(said(&store(dir.path(), &["check"])).contains("sound"));
    fs::write(dir.path().join("guests/web1/lease.1"), "rubbish").unwrap();
    let check = store(dir.path(), &["check", "--json"]);
    assert_eq!(check.status.code(), Some(3));
    let found: Value = serde_json::from_slice(&check.stdout).unwrap();
    assert!(
        found["wrong"][0].as_str().unwrap().contains("lease.1"),
        "{found}"
    );
    let path = dir.path().join("cluster.toml");
    let newer = fs::read_to_string(&path)
        .unwrap()
        .replace("version = 1", "version = 2");
    fs::write(&path, newer).unwrap();
    let refused = store(dir.path(), &["guests"]);
    assert!(
        said(&refused).contains("version 2, this release knows"),
        "{}",
        said(&refused)
    );
}

/// A damaged epoch holds the guest back for good; who knows that it runs nowhere frees it.
#[test]
fn a_damaged_lease_is_freed_by_force_only() {
    let dir = with_a_guest();
    fs::write(dir.path().join("guests/web1/lease.7"), "rubbish").unwrap();
    for looks in [
        &["lease", "show", "web1"][..],
        &["lease", "release", "web1"],
    ] {
        let output = store(dir.path(), looks);
        assert_eq!(output.status.code(), Some(1));
        let remedy = "free it: godwit-store lease release web1 --force";
        assert!(said(&output).contains(remedy), "{}", said(&output));
    }
    let freed = store(dir.path(), &["lease", "release", "web1", "--force"]);
    assert!(
        said(&freed).contains("web1 is free (epoch 8)"),
        "{}",
        said(&freed)
    );
    let shown = store(dir.path(), &["lease", "show", "web1"]);
    assert!(
        said(&shown).contains("the epoch before is damaged"),
        "{}",
        said(&shown)
    );
}
