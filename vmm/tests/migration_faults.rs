//! Either side dies, or a connection is lost, at every step of a migration: the guest runs in
//! exactly one place, or in none where nobody can know. Real processes, local KVM.

#[allow(dead_code, reason = "its guests say more than is needed here")]
mod little;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use little::{cannot_run_guests, command};
use shared_storage::lease::HeldLease;
use shared_storage::{ClusterFile, Datastore, Keeper, LocalHost, Role};
use storage_core::timing::Timing;

/// Long enough for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(10);
/// A VMM that serves its API answers far sooner.
const ANSWER: Duration = Duration::from_millis(500);

const SOURCE_STEPS: [&str; 8] = [
    "hello", "join", "draft", "pages", "end", "round", "state", "commit",
];
/// Only in some migrations.
const RARE_SOURCE_STEPS: [&str; 2] = ["zero", "abort"];
const TARGET_STEPS: [&str; 4] = ["accept", "rounddone", "ready", "running"];
/// Where a lease makes a difference.
const LEASE_STEPS: [&str; 4] = ["state", "ready", "commit", "running"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Source,
    Target,
    Nowhere,
}

/// A guest that hardly writes: little is left when it is stopped, and goes ahead of its state.
const QUIET: &str = "fill_mib=4";
/// One that leaves enough for a round of its own when it is stopped.
const BUSY: &str = "fill_mib=16 hot_mib=8 rate_mib_s=max sweep_mib_s=0";
/// If it has time to dirty all of that, and may stand still for as long as that takes to send.
const LARGE_LAST_ROUND: [&str; 4] = ["--blackout-max-ms", "1000", "--bandwidth-max", "67108864"];
/// One that dirties pages with zeroes, which is no probe.
const ZEROES: &str = "";

#[derive(Debug, Clone, Copy)]
struct Fault {
    moment: &'static str,
    step: &'static str,
    /// The round in which it happens, as `GODWIT_FAIL_AT` takes it.
    which: &'static str,
    act: &'static str,
    lease: bool,
    guest: &'static str,
    /// What fails on the other side.
    other: Option<&'static str>,
}

impl Fault {
    /// At the first such step of a quiet guest without a lease.
    const fn new(moment: &'static str, step: &'static str, act: &'static str) -> Self {
        Self {
            moment,
            step,
            which: "",
            act,
            lease: false,
            guest: QUIET,
            other: None,
        }
    }

    /// Who sends the frame fails before or after it, who hears it upon it.
    fn is_at_source(&self) -> bool {
        let mut steps = SOURCE_STEPS.iter().chain(&RARE_SOURCE_STEPS);
        steps.any(|step| *step == self.step) != (self.moment == "upon")
    }

    fn wish(&self) -> String {
        let Self {
            moment,
            step,
            which,
            act,
            ..
        } = self;
        format!("{moment}-{step}{which}:{act}")
    }

    /// Where the guest has to run afterwards.
    fn place(&self) -> Place {
        let killed = self.act == "kill";
        match (self.moment, self.step) {
            ("upon", "commit") if killed => Place::Nowhere,
            ("before" | "upon", "commit") if !self.lease => Place::Nowhere,
            (_, "commit") | ("upon", "running") => Place::Target,
            (_, "running") if !killed => Place::Target,
            // The target has said that it is ready, or that it runs, and is gone.
            (_, "running") | ("after", "ready") => Place::Nowhere,
            _ if killed && self.is_at_source() => Place::Nowhere,
            _ => Place::Source,
        }
    }
}

/// A `vmm` process; dies with this value.
struct Vmm(Child);

impl Vmm {
    fn start(dir: &Path, fault: Option<&str>, arguments: &[&str]) -> Self {
        let mut command = command(dir, arguments);
        if let Some(fault) = fault {
            command.env("GODWIT_FAIL_AT", fault);
        }
        Self(command.stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Where it waits for a guest, as it says itself.
    fn address(&mut self) -> String {
        let mut said = String::new();
        let errors = self.0.stderr.as_mut().unwrap();
        while !said.ends_with('\n') {
            let mut byte = [0];
            errors.read_exact(&mut byte).unwrap();
            said.push(char::from(byte[0]));
        }
        said.trim().rsplit(' ').next().unwrap().to_owned()
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Does the VMM behind this socket say that its guest runs?
fn runs(socket: &Path) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(b"GET /v1/info HTTP/1.1\r\nhost: vmm\r\nconnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        // The server may keep the connection; what came until then will do.
        let _ = stream.read_to_end(&mut answer);
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = ask().unwrap_or_default();
    let states = [r#""state":"running""#, r#""state":"migrating""#];
    states.iter().any(|state| answer.contains(state))
}

fn eventually(fault: Fault, what: &str, mut done: impl FnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < give_up, "{fault:?}: waited for {what}");
        thread::sleep(POLL);
    }
}

/// A datastore whose only guest host a may run.
fn datastore(dir: &Path) {
    let root = dir.join("store");
    std::fs::create_dir(&root).unwrap();
    let store = Datastore::create(&root, &ClusterFile::new("test", Timing::default())).unwrap();
    store
        .create_guest("web1", &toml::Table::new(), |_| Ok(()))
        .unwrap();
    let host = LocalHost::new("a", &dir.join("a")).unwrap();
    let keeper = Keeper::start(&store, &host, Role::Guest).unwrap();
    let files = store.guest("web1").unwrap().lease();
    let seen = files.look().unwrap();
    drop(HeldLease::claim(&keeper, files, &seen, None, None, PATIENCE).unwrap());
}

fn play(fault: Fault) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let kernel = match fault.guest {
        ZEROES => little::kernel(&little::zeroes()),
        _ => probe::IMAGE.to_vec(),
    };
    std::fs::write(path.join("kernel"), kernel).unwrap();
    let cmdline = format!("cpus=1 {}", fault.guest);
    let mut flags = [vec![], vec![]];
    if fault.lease {
        datastore(path);
        let on = |host| {
            let words = ["--datastore", "store", "--guest", "web1", "--host", host];
            [&words[..], &["--run-dir", host]].concat()
        };
        flags = [on("a"), on("b")];
    }
    let run = [
        "run",
        "--kernel",
        "kernel",
        "--cmdline",
        &cmdline,
        "--memory",
        "64",
        "--console",
        "off",
        "--api-socket",
        "source",
    ];
    let receive = [
        "receive",
        "--listen",
        "127.0.0.1:0",
        "--console",
        "off",
        "--api-socket",
        "target",
    ];
    let (source_socket, target_socket) = (path.join("source"), path.join("target"));
    let wish = fault.wish();
    let (at_source, at_target) = if fault.is_at_source() {
        (Some(&wish[..]), fault.other)
    } else {
        (fault.other, Some(&wish[..]))
    };
    let mut source = Vmm::start(path, at_source, &[&run[..], &flags[0]].concat());
    let mut target = Vmm::start(path, at_target, &[&receive[..], &flags[1]].concat());
    let address = target.address();
    eventually(fault, "the guest", || runs(&source_socket));
    let migrate = ["migrate", "--api-socket", "source", "--to", &address];
    // Nobody waits for minutes for a target that compares no memory.
    let verify: &[&str] = if fault.act == "stop" {
        &[]
    } else {
        &["--verify"]
    };
    let goal = match (fault.which, fault.guest) {
        ("@last", BUSY) => &LARGE_LAST_ROUND[..],
        _ => &["--accept-longer"],
    };
    let began = Instant::now();
    let told = little::vmm(path, &[&migrate[..], goal, verify].concat());
    let took = began.elapsed();
    let said = String::from_utf8_lossy(&told.stderr);
    match fault.place() {
        Place::Source => {
            eventually(fault, "the source running it", || runs(&source_socket));
            assert!(!runs(&target_socket), "{fault:?}: both run it");
            // A target that nobody has spoken to waits on; any other leaves nothing behind.
            let waits_on = match fault.moment {
                "before" => fault.step == "hello",
                "upon" => fault.step == "hello" && fault.act == "cut",
                _ => false,
            };
            // One that stands still cannot end.
            if !waits_on && fault.act != "stop" {
                eventually(fault, "the target ending", || target.has_ended());
            }
        }
        Place::Target => {
            eventually(fault, "the target running it", || runs(&target_socket));
            assert!(!runs(&source_socket), "{fault:?}: both run it");
        }
        Place::Nowhere => {
            let gone = if fault.is_at_source() && fault.act == "kill" {
                &mut source
            } else {
                &mut target
            };
            eventually(fault, "the end of one", || gone.has_ended());
            let both = [&source_socket, &target_socket];
            assert!(both.iter().all(|socket| !runs(socket)), "{fault:?}");
            // After a hand-over of the lease, or the word that it runs, it has moved for all that
            // the source knows.
            let knows = fault.lease || fault.step == "running";
            assert!(knows || !told.status.success(), "{fault:?}: {told:?}");
            // Who lives and cannot know says so, and what becomes of the guest.
            let uncertain = !knows && (!fault.is_at_source() || fault.act != "kill");
            let words = "stands still on this host";
            assert!(!uncertain || said.contains(words), "{fault:?}: {said}");
        }
    }
    println!("{took:?} {fault:?}: {:?}", fault.place());
}

fn play_all(faults: &[Fault]) {
    if cannot_run_guests() {
        return;
    }
    let began = Instant::now();
    faults.iter().copied().for_each(play);
    println!("{} failures in {:?}", faults.len(), began.elapsed());
}

#[test]
fn a_failure_at_any_step_leaves_one_place_at_most_to_run_the_guest() {
    let mut faults = Vec::new();
    for lease in [false, true] {
        let steps = SOURCE_STEPS.iter().chain(&TARGET_STEPS);
        for step in steps.filter(|step| !lease || LEASE_STEPS.contains(step)) {
            for moment in ["before", "after", "upon"] {
                for act in ["kill", "cut"] {
                    let fault = Fault::new(moment, step, act);
                    faults.push(Fault { lease, ..fault });
                }
            }
        }
    }
    faults.retain(|fault| match (fault.moment, fault.step) {
        // The end of a round is nothing that can fail after it was said.
        ("after", "end") => false,
        // One data connection of many that a target does not understand: it waits for another.
        ("upon", "join") => fault.act == "kill",
        _ => true,
    });
    play_all(&faults);
}

#[test]
fn a_failure_in_any_round_leaves_one_place_at_most_to_run_the_guest() {
    let mut faults = Vec::new();
    for act in ["kill", "cut"] {
        let points = [
            // The round over all memory, ...
            ("after", "pages", "@1", QUIET),
            ("before", "end", "@1", QUIET),
            ("before", "round", "@1", QUIET),
            ("before", "rounddone", "@1", QUIET),
            ("after", "rounddone", "@1", QUIET),
            ("upon", "pages", "@1", QUIET),
            ("upon", "end", "@1", QUIET),
            ("upon", "round", "@1", QUIET),
            ("upon", "rounddone", "@1", QUIET),
            // ... one over what was dirtied meanwhile, ...
            ("before", "pages", "@2", BUSY),
            ("before", "end", "@2", BUSY),
            ("before", "rounddone", "@2", BUSY),
            ("upon", "pages", "@2", BUSY),
            ("upon", "end", "@2", BUSY),
            ("before", "zero", "@2", ZEROES),
            ("after", "zero", "@2", ZEROES),
            ("upon", "zero", "@2", ZEROES),
            // ... and what is left when the guest stands still, over data connections or none.
            ("before", "pages", "@last", BUSY),
            ("before", "end", "@last", BUSY),
            ("before", "round", "@last", BUSY),
            ("after", "round", "@last", BUSY),
            ("upon", "rounddone", "@last", BUSY),
            ("before", "pages", "@last", QUIET),
            ("after", "pages", "@last", QUIET),
        ];
        faults.extend(points.map(|(moment, step, which, guest)| Fault {
            which,
            guest,
            ..Fault::new(moment, step, act)
        }));
        // What a source says whose target has failed.
        faults.push(Fault {
            other: Some("before-ready:cut"),
            ..Fault::new("before", "abort", act)
        });
    }
    play_all(&faults);
}

/// The guest stands still meanwhile, but not for long.
#[test]
fn a_target_that_falls_silent_at_the_switch_over_is_not_waited_for() {
    play_all(&[Fault::new("before", "ready", "stop")]);
}
