//! Probe guests that move between machines of one process over loopback.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::fs;
use std::mem::offset_of;
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use probe::abi::{COMMAND_REST, COMMAND_SWEEP, Header, REPORT_BYTES, REPORT_GPA};
use probe::report::Report;
use shared_storage::gate::AlwaysOpen;
use vm_memory::{Bytes, GuestAddress};
use vmm::console::{Console, ConsoleMode};
use vmm::guest::{Guest, Parts};
use vmm::machine::{Backends, DiskAccess};
use vmm::migration::arrival::Arrival;
use vmm::migration::joining::Listening;
use vmm::migration::source::Outcome;
use vmm::migration::stream::Security;
use vmm::migration::{MigrationError, target};
use vmm::notice::Notice;
use vmm_core::converge::Goal;
use vmm_core::migration::Migrate;
use vmm_core::spec::Spec;

/// Whatever the probe is waited for comes within seconds; this leaves room for busy machines.
pub const PATIENCE: Duration = Duration::from_mins(1);

pub fn console() -> (Arc<Console>, mpsc::Sender<Notice>) {
    let (notices, _) = mpsc::channel();
    let console = Console::new(&ConsoleMode::Off, notices.clone()).unwrap();
    (Arc::new(console), notices)
}

pub fn boot_probe(dir: &Path, settings: &str, cpus: u32, memory_mib: u64) -> Option<Arc<Guest>> {
    let spec = |kernel| Spec {
        name: "probe".to_owned(),
        cpus,
        memory_mib,
        kernel,
        initramfs: None,
        cmdline: format!("cpus={cpus} {settings}"),
        cpu_features: None,
        hugepages: false,
        disks: vec![],
        nets: vec![],
    };
    boot(dir, spec)
}

/// Boot the probe as the spec says that is made for its kernel.
pub fn boot(dir: &Path, spec: impl FnOnce(String) -> Spec) -> Option<Arc<Guest>> {
    let kvm = match vmm::kvm::open() {
        Ok(kvm) => kvm,
        Err(error) => {
            ground::skip(error);
            return None;
        }
    };
    let kernel = dir.join("probe");
    fs::write(&kernel, probe::IMAGE).unwrap();
    let spec = spec(kernel.to_string_lossy().into_owned());
    let (console, notices) = console();
    let access = DiskAccess {
        gate: Arc::new(AlwaysOpen),
        root: None,
        deferred: false,
    };
    let backends = Backends::open(&spec, console, &access).unwrap();
    let guest = Guest::boot(Parts {
        kvm,
        spec,
        backends,
        masks: Vec::new(),
        notices,
        epoch: None,
    });
    let guest = guest.unwrap();
    guest.start().unwrap();
    wait_for(&guest, "that it runs", Report::is_running);
    Some(guest)
}

pub fn report(guest: &Guest) -> Option<Report> {
    let mut bytes = vec![0; REPORT_BYTES];
    guest
        .memory()
        .read_slice(&mut bytes, GuestAddress(REPORT_GPA))
        .unwrap();
    Report::decode(&bytes).ok()
}

pub fn wait_for(guest: &Guest, what: &str, done: impl Fn(&Report) -> bool) -> Report {
    let give_up = Instant::now() + PATIENCE;
    loop {
        match report(guest) {
            Some(report) if done(&report) => return report,
            found if Instant::now() > give_up => panic!("waited for {what}: {found:?}"),
            _ => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Two sweeps over all memory from now on: every page was read on this side at least once.
pub fn verify_all_pages(guest: &Guest) -> Report {
    let before = report(guest).unwrap().sweeps();
    let cpus = u64::from(guest.spec().cpus);
    let after = wait_for(guest, "sweeps", |report| {
        report.sweeps() >= before + 2 * cpus || report.bad_pages() > 0
    });
    assert_eq!(after.bad_pages(), 0, "{after:?}");
    after
}

/// The same of a guest that is too busy to verify before it is told to rest.
pub fn verify_all_pages_at_rest(guest: &Guest) {
    let command = REPORT_GPA + offset_of!(Header, command) as u64;
    guest
        .memory()
        .write_obj(COMMAND_REST | COMMAND_SWEEP, GuestAddress(command))
        .unwrap();
    verify_all_pages(guest);
}

pub fn wish(to: String) -> Migrate {
    Migrate {
        to,
        connections: 2,
        goal: Goal::default(),
        bandwidth_max: 0,
        verify: true,
        tls_dir: None,
        dry_run: false,
    }
}

pub struct Moved {
    pub guest: Arc<Guest>,
    pub summary: vmm_core::migration::Summary,
}

pub fn migrate(
    guest: &Arc<Guest>,
    change: impl FnOnce(&mut Migrate),
) -> Result<Moved, MigrationError> {
    migrate_until(guest, change).0
}

/// The same, and when the source was through with it.
pub fn migrate_until(
    guest: &Arc<Guest>,
    change: impl FnOnce(&mut Migrate),
) -> (Result<Moved, MigrationError>, Instant) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut wish = wish(listener.local_addr().unwrap().to_string());
    change(&mut wish);
    let security = Security::from_dir(wish.tls_dir.as_deref().map(Path::new)).unwrap();
    let arriving = thread::spawn(move || {
        let (console, notices) = console();
        let mut arrival = Arrival::new(console, notices, None);
        let listening = Listening {
            listener: &listener,
            security: &security,
            until: None,
            patience: PATIENCE,
        };
        target::receive(&listening, &mut arrival).map(|_| arrival.into_guest())
    });
    let outcome = guest.departures().depart(guest, &wish);
    let over = Instant::now();
    let outcome = outcome.and_then(|outcome| match outcome {
        Outcome::Moved(summary) => {
            let arrived = arriving.join().unwrap()?;
            let guest = arrived.expect("the target says that it runs the guest");
            Ok(Moved { guest, summary })
        }
        // Before it accepted the offer the target goes on listening.
        Outcome::Stayed(error @ MigrationError::Refused(_)) => Err(error),
        // Nor does one whose source has perhaps not said a word to it.
        Outcome::Stayed(error) if guest.departures().latest().progress().sent_bytes == 0 => {
            Err(error)
        }
        Outcome::Stayed(error) => {
            assert!(
                arriving.join().unwrap().is_err(),
                "both sides have the guest"
            );
            Err(error)
        }
        other => panic!("{other:?}"),
    });
    (outcome, over)
}

/// How often something is repeated: so often, or as the environment says for a long run.
pub fn count(variable: &str, default: u64) -> u64 {
    let set = std::env::var(variable).ok();
    set.and_then(|count| count.parse().ok()).unwrap_or(default)
}
