//! The control API through `vmm ctl`.

mod little;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use little::{ECHO, cannot_run_guests, command, kernel, vmm};

const LIMIT: Duration = Duration::from_mins(1);

/// What a verb answers; an empty answer is null.
fn ctl(dir: &Path, verb: &str) -> Result<Value, String> {
    let output = vmm(dir, &["ctl", "--api-socket", "api", verb]);
    if !output.status.success() {
        return Err(String::from_utf8(output.stderr).unwrap());
    }
    Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
}

#[test]
fn a_guest_is_controlled_and_tells_what_happens() {
    if cannot_run_guests() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("echo"), kernel(&ECHO)).unwrap();
    let settings = "name = 'web1'\nkernel = 'echo'\nmemory_mib = 16\ncpus = 2\n";
    std::fs::write(dir.join("web1.toml"), settings).unwrap();
    let doors = ["--console", "off", "--api-socket", "api"];
    let mut guest = command(dir, &[&["run", "web1.toml"][..], &doors].concat())
        .spawn()
        .unwrap();
    let started = Instant::now();
    let info = loop {
        match ctl(dir, "info") {
            Ok(info) => break info,
            Err(why) => assert!(started.elapsed() < LIMIT, "{why}"),
        }
    };
    assert_eq!(info["name"], "web1");
    assert_eq!(
        (&info["cpus"], &info["memory_mib"]),
        (&2.into(), &16.into())
    );

    let mut listener = command(dir, &["ctl", "--api-socket", "api", "events"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut events = BufReader::new(listener.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&events.next().unwrap().unwrap()).unwrap() };
    // The first line tells how things stand.
    assert_eq!(next()["detail"], "running");

    ctl(dir, "pause").unwrap();
    assert_eq!(ctl(dir, "info").unwrap()["state"], "paused");
    let exits = || ctl(dir, "counters").unwrap()["exits"].clone();
    let still = exits();
    assert_eq!(exits(), still, "a paused guest does nothing");
    ctl(dir, "resume").unwrap();
    ctl(dir, "reset").unwrap();
    assert_eq!(next()["detail"], "paused");
    assert_eq!(next()["detail"], "running");
    assert_eq!(next()["event"], "rebooted");
    let info = ctl(dir, "info").unwrap();
    assert_eq!(
        (&info["reboots"], &info["state"]),
        (&1.into(), &"running".into())
    );
    assert_ne!(exits(), still);
    ctl(dir, "power-button").unwrap();
    ctl(dir, "power-off").unwrap();
    assert_eq!(guest.wait().unwrap().code(), Some(0));
    assert_eq!(listener.wait().unwrap().code(), Some(0));
    assert!(!dir.join("api").exists());
}

#[test]
fn the_description_is_printed() {
    let output = vmm(Path::new("."), &["openapi"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    assert!(document["paths"]["/v1/info"]["get"].is_object());
}
