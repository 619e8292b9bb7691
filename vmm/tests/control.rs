//! The control API through `vmm ctl`.

mod little;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
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

/// A guest that answers on `api` in this directory; what it said first.
fn start(dir: &Path) -> (Child, Value) {
    std::fs::write(dir.join("echo"), kernel(&ECHO)).unwrap();
    let settings = "name = 'web1'\nkernel = 'echo'\nmemory_mib = 16\ncpus = 2\n";
    std::fs::write(dir.join("web1.toml"), settings).unwrap();
    let doors = ["--console", "off", "--api-socket", "api"];
    let guest = command(dir, &[&["run", "web1.toml"][..], &doors].concat())
        .spawn()
        .unwrap();
    let started = Instant::now();
    loop {
        match ctl(dir, "info") {
            Ok(info) => return (guest, info),
            Err(why) => assert!(started.elapsed() < LIMIT, "{why}"),
        }
    }
}

#[test]
fn a_guest_is_controlled_and_tells_what_happens() {
    if cannot_run_guests() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (mut guest, info) = start(dir);
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

/// Whoever asks as the guest ends, most of all how a migration went, gets a whole answer.
#[test]
fn an_answer_under_way_is_written_before_the_process_ends() {
    if cannot_run_guests() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (mut guest, _) = start(dir);
    let mut listener = UnixStream::connect(dir.join("api")).unwrap();
    listener
        .write_all(b"GET /v1/events HTTP/1.1\r\nHost: guest\r\n\r\n")
        .unwrap();
    // It is being answered: the head has begun to come.
    let mut answer = vec![0];
    listener.read_exact(&mut answer).unwrap();
    ctl(dir, "power-off").unwrap();
    assert_eq!(guest.wait().unwrap().code(), Some(0));
    listener.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.ends_with("\r\n0\r\n\r\n"), "no last chunk: {answer}");
}

#[test]
fn the_description_is_printed() {
    let output = vmm(Path::new("."), &["openapi"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    assert!(document["paths"]["/v1/info"]["get"].is_object());
}
