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
const TARGET_STEPS: [&str; 4] = ["accept", "rounddone", "ready", "running"];
/// Where a lease makes a difference.
const LEASE_STEPS: [&str; 4] = ["state", "ready", "commit", "running"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Source,
    Target,
    Nowhere,
}

#[derive(Debug, Clone, Copy)]
struct Fault {
    moment: &'static str,
    step: &'static str,
    act: &'static str,
    lease: bool,
}

impl Fault {
    fn is_at_source(&self) -> bool {
        SOURCE_STEPS.contains(&self.step)
    }

    /// Where the guest has to run afterwards.
    fn place(&self) -> Place {
        let killed = self.act == "kill";
        match (self.moment, self.step) {
            ("before", "commit") if !self.lease => Place::Nowhere,
            (_, "commit") => Place::Target,
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
    fn start(dir: &Path, fault: Option<Fault>, arguments: &[&str]) -> Self {
        let mut command = command(dir, arguments);
        if let Some(Fault {
            moment, step, act, ..
        }) = fault
        {
            command.env("GODWIT_FAIL_AT", format!("{moment}-{step}:{act}"));
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
    std::fs::write(path.join("probe"), probe::IMAGE).unwrap();
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
        "probe",
        "--cmdline",
        "cpus=1 fill_mib=4",
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
    let at = |side: bool| Some(fault).filter(|fault| fault.is_at_source() == side);
    let mut source = Vmm::start(path, at(true), &[&run[..], &flags[0]].concat());
    let mut target = Vmm::start(path, at(false), &[&receive[..], &flags[1]].concat());
    let address = target.address();
    eventually(fault, "the guest", || runs(&source_socket));
    let migrate = ["migrate", "--api-socket", "source", "--to", &address];
    let told = little::vmm(
        path,
        &[&migrate[..], &["--accept-longer", "--verify"]].concat(),
    );
    match fault.place() {
        Place::Source => {
            eventually(fault, "the source running it", || runs(&source_socket));
            assert!(!runs(&target_socket), "{fault:?}: both run it");
            // A target that nobody has spoken to waits on; any other leaves nothing behind.
            if (fault.moment, fault.step) != ("before", "hello") {
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
        }
    }
}

#[test]
fn a_failure_at_any_step_leaves_one_place_at_most_to_run_the_guest() {
    if cannot_run_guests() {
        return;
    }
    let mut faults = Vec::new();
    for lease in [false, true] {
        let steps = SOURCE_STEPS.iter().chain(&TARGET_STEPS);
        for step in steps.filter(|step| !lease || LEASE_STEPS.contains(step)) {
            for moment in ["before", "after"] {
                for act in ["kill", "cut"] {
                    faults.push(Fault {
                        moment,
                        step,
                        act,
                        lease,
                    });
                }
            }
        }
    }
    // The end of a round is nothing that can fail after it was said.
    faults.retain(|fault| (fault.moment, fault.step) != ("after", "end"));
    let began = Instant::now();
    for fault in &faults {
        let case = Instant::now();
        play(*fault);
        println!("{:?} {fault:?}: {:?}", case.elapsed(), fault.place());
    }
    println!("{} failures in {:?}", faults.len(), began.elapsed());
}
