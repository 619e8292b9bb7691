//! `vmm migrate --dry-run`, by real processes on the local KVM: everything is checked and
//! measured, nothing moves, and the same target takes the guest afterwards.

#[allow(dead_code, reason = "its guests say more than is needed here")]
mod little;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use little::{cannot_run_guests, command};
use vmm::cli::ctl::request;
use vmm_core::control::Info;
use vmm_core::lifecycle::State;
use vmm_core::migration::{Forecast, Summary};

/// Long enough for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(10);
const CASES: [&str; 3] = [
    "cpus=1 fill_mib=4 sweep_mib_s=0",
    "cpus=1 fill_mib=64 hot_mib=4 rate_mib_s=50 sweep_mib_s=0",
    "cpus=1 fill_mib=96 hot_mib=48 rate_mib_s=max sweep_mib_s=0",
];

/// A `vmm` process; dies with this value.
struct Vmm(Child);

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(dir: &Path, arguments: &[&str]) -> Vmm {
    let child = command(dir, arguments).stderr(Stdio::piped()).spawn();
    Vmm(child.unwrap())
}

/// A probe under `settings`, as a spec with a disk, that runs.
fn source(dir: &Path, settings: &str) -> Vmm {
    std::fs::write(dir.join("probe"), probe::IMAGE).unwrap();
    std::fs::write(dir.join("disk.raw"), vec![0; 1 << 20]).unwrap();
    let disk = dir.join("disk.raw");
    let spec = format!(
        "name = \"web1\"\nmemory_mib = 128\nkernel = \"{}\"\ncmdline = \"{settings}\"\n\n\
         [[disk]]\npath = \"{}\"\nformat = \"raw\"\ndirect = false\n",
        dir.join("probe").display(),
        disk.display()
    );
    std::fs::write(dir.join("web1.toml"), spec).unwrap();
    let arguments = [
        "run",
        "web1.toml",
        "--console",
        "off",
        "--api-socket",
        "source",
    ];
    let source = start(dir, &arguments);
    let give_up = Instant::now() + PATIENCE;
    while !runs(&dir.join("source")) {
        assert!(Instant::now() < give_up, "{settings}: it does not run");
        thread::sleep(POLL);
    }
    source
}

fn runs(socket: &Path) -> bool {
    let answer = request(socket, "GET", "/v1/info", None).and_then(|mut answer| answer.body());
    let info = answer
        .ok()
        .and_then(|body| serde_json::from_slice::<Info>(&body).ok());
    info.is_some_and(|info| info.state == State::Running)
}

/// A target, and where it listens.
fn target(dir: &Path, more: &[&str]) -> (Vmm, String) {
    let arguments = ["receive", "--listen", "127.0.0.1:0", "--console", "off"];
    let arguments = [&arguments[..], &["--api-socket", "target"], more].concat();
    let mut target = start(dir, &arguments);
    let mut line = String::new();
    BufReader::new(target.0.stderr.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address = line.trim().rsplit(' ').next().unwrap().to_owned();
    (target, address)
}

fn migrate(dir: &Path, to: &str, more: &[&str]) -> (bool, String, String) {
    let arguments = ["migrate", "--api-socket", "source", "--to", to, "--json"];
    let output = little::vmm(dir, &[&arguments[..], more].concat());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.success(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn exit_code(vmm: &mut Vmm) -> Option<i32> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = vmm.0.try_wait().unwrap() {
            return status.code();
        }
        assert!(Instant::now() < give_up, "it does not end");
        thread::sleep(POLL);
    }
}

#[test]
fn a_dry_run_moves_nothing_and_foretells_the_move_that_follows() {
    if cannot_run_guests() {
        return;
    }
    for settings in CASES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let mut source = source(path, settings);
        let (_target, to) = target(path, &[]);
        let (ok, told, errors) = migrate(path, &to, &["--dry-run", "--accept-longer"]);
        assert!(ok, "{settings}: {errors}");
        let told: Forecast = serde_json::from_str(&told).unwrap();
        assert!(runs(&path.join("source")));
        let (ok, moved, errors) = migrate(path, &to, &["--accept-longer"]);
        assert!(ok, "{settings}: {errors}");
        let moved: Summary = serde_json::from_str(&moved).unwrap();
        assert_eq!(exit_code(&mut source), Some(13));
        let ratio = |told: u64, came: u64| told as f64 / came.max(1) as f64;
        println!(
            "{settings}: foretold by came: time {:.2}, bytes {:.2}, blackout {:.2}\n  \
             {told:?}\n  {moved:?}",
            ratio(told.total_us, moved.total_us),
            ratio(told.sent_bytes, moved.sent_bytes),
            ratio(told.blackout_us, moved.guest_blackout_us),
        );
    }
}

#[test]
fn a_dry_run_of_what_cannot_be_says_why_and_a_target_for_one_ends() {
    if cannot_run_guests() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let _source = source(path, CASES[0]);
    // The file that the path leads to now is not the one that the source has open.
    let disk = path.join("disk.raw");
    std::fs::rename(&disk, path.join("kept.raw")).unwrap();
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let (mut once, to) = target(path, &["--once"]);
    let (ok, _, refused) = migrate(path, &to, &["--dry-run"]);
    assert!(!ok && refused.contains("disk.raw"), "{refused}");
    assert_eq!(exit_code(&mut once), Some(1));
    std::fs::rename(path.join("kept.raw"), &disk).unwrap();
    let (mut once, to) = target(path, &["--once"]);
    let (ok, told, errors) = migrate(path, &to, &["--dry-run", "--accept-longer"]);
    assert!(ok, "{told}{errors}");
    assert_eq!(exit_code(&mut once), Some(0));
    assert!(runs(&path.join("source")));
    let (mut nobody, _) = target(path, &["--wait-max-s", "0"]);
    assert_eq!(exit_code(&mut nobody), Some(1));
}
