//! Live migration on the local KVM: the probe guest moves between two machines of this
//! process over loopback, and says from inside what it noticed.

use std::fs;
use std::mem::offset_of;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use probe::abi::{COMMAND_REST, COMMAND_SWEEP, Header, REPORT_BYTES, REPORT_GPA};
use probe::report::Report;
use shared_storage::gate::AlwaysOpen;
use vm_memory::{Bytes, GuestAddress};
use vmm::console::{Console, ConsoleMode};
use vmm::guest::{Guest, GuestError, Hold, Parts};
use vmm::machine::{Backends, DiskAccess};
use vmm::migration::arrival::Arrival;
use vmm::migration::departure::Departures;
use vmm::migration::source::Outcome;
use vmm::migration::stream::Security;
use vmm::migration::{MigrationError, target, wire};
use vmm::notice::Notice;
use vmm_core::converge::Goal;
use vmm_core::lifecycle::State;
use vmm_core::migration::{Migrate, Phase};
use vmm_core::spec::Spec;

/// Whatever the probe is waited for comes within seconds; this leaves room for busy machines.
const PATIENCE: Duration = Duration::from_mins(1);
/// Moments of a cancel lie within this; some come after the end.
const LONGEST_MOVE: Duration = Duration::from_millis(400);
/// Far below the time after which a socket gives up by itself.
const STUCK: Duration = Duration::from_secs(5);

fn console() -> (Arc<Console>, mpsc::Sender<Notice>) {
    let (notices, _) = mpsc::channel();
    let console = Console::new(&ConsoleMode::Off, notices.clone()).unwrap();
    (Arc::new(console), notices)
}

fn boot_probe(dir: &Path, settings: &str, cpus: u32, memory_mib: u64) -> Option<Arc<Guest>> {
    let kvm = match vmm::kvm::open() {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("SKIPPED: {error}");
            return None;
        }
    };
    let kernel = dir.join("probe");
    fs::write(&kernel, probe::IMAGE).unwrap();
    let spec = Spec {
        name: "probe".to_owned(),
        cpus,
        memory_mib,
        kernel: kernel.to_string_lossy().into_owned(),
        initramfs: None,
        cmdline: format!("cpus={cpus} {settings}"),
        hugepages: false,
        disks: vec![],
        nets: vec![],
    };
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

fn report(guest: &Guest) -> Option<Report> {
    let mut bytes = vec![0; REPORT_BYTES];
    guest
        .memory()
        .read_slice(&mut bytes, GuestAddress(REPORT_GPA))
        .unwrap();
    Report::decode(&bytes).ok()
}

fn wait_for(guest: &Guest, what: &str, done: impl Fn(&Report) -> bool) -> Report {
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
fn verify_all_pages(guest: &Guest) -> Report {
    let before = report(guest).unwrap().sweeps();
    let cpus = u64::from(guest.spec().cpus);
    let after = wait_for(guest, "sweeps", |report| {
        report.sweeps() >= before + 2 * cpus || report.bad_pages() > 0
    });
    assert_eq!(after.bad_pages(), 0, "{after:?}");
    after
}

/// The same of a guest that is too busy to verify before it is told to rest.
fn verify_all_pages_at_rest(guest: &Guest) {
    let command = REPORT_GPA + offset_of!(Header, command) as u64;
    guest
        .memory()
        .write_obj(COMMAND_REST | COMMAND_SWEEP, GuestAddress(command))
        .unwrap();
    verify_all_pages(guest);
}

fn wish(to: String) -> Migrate {
    Migrate {
        to,
        connections: 2,
        goal: Goal::default(),
        bandwidth_max: 0,
        verify: true,
        tls_dir: None,
    }
}

struct Moved {
    guest: Arc<Guest>,
    summary: vmm_core::migration::Summary,
}

fn migrate(guest: &Arc<Guest>, change: impl FnOnce(&mut Migrate)) -> Result<Moved, MigrationError> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut wish = wish(listener.local_addr().unwrap().to_string());
    change(&mut wish);
    let security = Security::from_dir(wish.tls_dir.as_deref().map(Path::new)).unwrap();
    let arriving = thread::spawn(move || {
        let (console, notices) = console();
        let mut arrival = Arrival::new(console, notices, None);
        target::receive(&listener, &security, &mut arrival).map(|()| arrival.into_guest())
    });
    match guest.departures().depart(guest, &wish)? {
        Outcome::Moved(summary) => {
            let arrived = arriving.join().unwrap()?;
            let guest = arrived.expect("the target says that it runs the guest");
            Ok(Moved { guest, summary })
        }
        // Before it accepted the offer the target goes on listening.
        Outcome::Stayed(error @ MigrationError::Refused(_)) => Err(error),
        // Nor does one that was cancelled before it had said a word to the target.
        Outcome::Stayed(error @ MigrationError::Cancelled)
            if guest.departures().latest().progress().sent_bytes == 0 =>
        {
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
    }
}

#[test]
fn a_guest_moves_and_every_page_arrives() {
    let dir = tempfile::tempdir().unwrap();
    for (settings, cpus) in [
        ("fill_mib=1", 1),
        ("fill_mib=64 hot_mib=4 rate_mib_s=50", 1),
        ("fill_mib=64 hot_mib=16 rate_mib_s=50", 2),
    ] {
        let Some(guest) = boot_probe(dir.path(), settings, cpus, 256) else {
            return;
        };
        let moved = migrate(&guest, |wish| wish.goal.accept_longer = true).unwrap();
        assert_eq!(
            guest.state(),
            Some(State::Paused),
            "the source stands still"
        );
        guest.end();
        verify_all_pages(&moved.guest);
        println!("{settings}, {cpus} vCPUs: {:?}", moved.summary);
        assert!(moved.summary.verified);
        assert!(moved.summary.guest_blackout_us <= moved.summary.blackout_us);
    }
}

/// How often something is repeated: so often, or as the environment says for a long run.
fn count(variable: &str, default: u64) -> u64 {
    let set = std::env::var(variable).ok();
    set.and_then(|count| count.parse().ok()).unwrap_or(default)
}

/// Random enough for moments; the seed is printed, and taken from the environment.
struct Moments(u64);

impl Moments {
    fn new() -> Self {
        let now = std::time::SystemTime::now();
        let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
        let seed = count("GODWIT_SEED", since.as_micros() as u64 | 1);
        println!("GODWIT_SEED={seed}");
        Self(seed)
    }

    /// xorshift64
    fn below(&mut self, limit: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Duration::from_micros(self.0 % limit.as_micros() as u64)
    }
}

#[test]
fn a_cancel_at_any_moment_leaves_the_guest_in_one_place() {
    let dir = tempfile::tempdir().unwrap();
    let settings = "fill_mib=32 hot_mib=2 rate_mib_s=20";
    let Some(mut guest) = boot_probe(dir.path(), settings, 1, 64) else {
        return;
    };
    let mut moments = Moments::new();
    let (mut stayed, mut moved) = (0, 0);
    for _ in 0..count("GODWIT_CANCELS", 12) {
        let moment = moments.below(LONGEST_MOVE);
        let cancelling = thread::spawn({
            let guest = guest.clone();
            move || {
                // The one that is to be cancelled, and not the one before it.
                while guest.departures().latest().progress().phase == Phase::Failed {
                    thread::sleep(Duration::from_millis(1));
                }
                thread::sleep(moment);
                guest.departures().latest().cancel();
            }
        });
        let outcome = migrate(&guest, |wish| wish.goal.accept_longer = true);
        cancelling.join().unwrap();
        match outcome {
            Ok(there) => {
                assert_eq!(guest.state(), Some(State::Paused));
                guest.end();
                guest = there.guest;
                moved += 1;
            }
            Err(error) => {
                assert!(matches!(error, MigrationError::Cancelled), "{error}");
                assert_eq!(guest.state(), Some(State::Running));
                stayed += 1;
            }
        }
    }
    println!("{stayed} cancelled, {moved} moved all the same");
    verify_all_pages(&guest);
}

#[test]
fn a_guest_moves_to_and_fro() {
    let dir = tempfile::tempdir().unwrap();
    let settings = "fill_mib=16 hot_mib=2 rate_mib_s=20";
    let Some(mut guest) = boot_probe(dir.path(), settings, 1, 64) else {
        return;
    };
    for _ in 0..count("GODWIT_PING_PONGS", 6) {
        let moved = migrate(&guest, |wish| wish.goal.accept_longer = true).unwrap();
        guest.end();
        guest = moved.guest;
    }
    verify_all_pages(&guest);
}

#[test]
fn a_cancelled_migration_leaves_the_guest_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let settings = "fill_mib=32 hot_mib=2 rate_mib_s=20";
    let Some(guest) = boot_probe(dir.path(), settings, 1, 128) else {
        return;
    };
    let cancelling = thread::spawn({
        let guest = guest.clone();
        move || {
            while guest.departures().latest().progress().sent_bytes == 0 {
                thread::sleep(Duration::from_millis(1));
            }
            guest.departures().latest().cancel();
        }
    });
    // Slow enough to be still under way when it is cancelled.
    let stayed = migrate(&guest, |wish| wish.bandwidth_max = 2 << 20);
    cancelling.join().unwrap();
    assert!(matches!(stayed.err(), Some(MigrationError::Cancelled)));
    assert_eq!(guest.state(), Some(State::Running));
    verify_all_pages(&guest);
}

/// Takes whatever connects, answers the offer, and then neither reads nor says anything.
fn deaf_target() -> (String, thread::JoinHandle<Vec<TcpStream>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let deaf = thread::spawn(move || {
        let mut control = listener.accept().unwrap().0;
        wire::receive(&mut control).unwrap();
        let accept = wire::Accept { holder: None };
        wire::send(&mut control, wire::Kind::Accept, 0, &accept).unwrap();
        let mut all: Vec<_> = (0..2).map(|_| listener.accept().unwrap().0).collect();
        all.push(control);
        all
    });
    (address, deaf)
}

#[test]
fn a_cancel_ends_the_wait_for_a_target_that_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let settings = "fill_mib=64 hot_mib=2 rate_mib_s=20";
    let Some(guest) = boot_probe(dir.path(), settings, 1, 128) else {
        return;
    };
    let (address, deaf) = deaf_target();
    Departures::begin(&guest, wish(address)).unwrap();
    let connections = deaf.join().unwrap();
    let watch = guest.departures().latest();
    // Until its senders are stuck in full sockets.
    let mut sent = 0;
    while sent == 0 || watch.progress().sent_bytes != sent {
        sent = watch.progress().sent_bytes;
        thread::sleep(Duration::from_millis(100));
    }
    let cancelled = Instant::now();
    watch.cancel();
    while watch.progress().phase != Phase::Failed {
        assert!(cancelled.elapsed() < PATIENCE, "{:?}", watch.progress());
        thread::sleep(Duration::from_millis(1));
    }
    println!("given up after {:?}", cancelled.elapsed());
    assert!(cancelled.elapsed() < STUCK, "{:?}", cancelled.elapsed());
    assert_eq!(guest.state(), Some(State::Running));
    drop(connections);
    // The next attempt finds nothing in its way.
    let moved = migrate(&guest, |wish| wish.goal.accept_longer = true).unwrap();
    guest.end();
    verify_all_pages(&moved.guest);
}

#[test]
fn a_guest_that_reboots_meanwhile_stays_and_nobody_ends_it_at_the_switch_over() {
    let dir = tempfile::tempdir().unwrap();
    let Some(guest) = boot_probe(dir.path(), "fill_mib=1", 1, 64) else {
        return;
    };
    let since = guest.moment();
    guest.leave(since).unwrap();
    let refused = guest.ask("reset the guest", Notice::Reset);
    assert!(
        matches!(refused, Err(GuestError::Leaving(_))),
        "{refused:?}"
    );
    assert!(guest.reboot(|| {}).is_err());
    let waiting = thread::spawn({
        let guest = guest.clone();
        move || guest.settle()
    });
    assert!(guest.unhold(Hold::Migration).unwrap());
    assert!(!waiting.join().unwrap(), "it is here");
    guest.reboot(|| {}).unwrap();
    let left = guest.leave(since);
    assert!(matches!(left, Err(GuestError::Ending)), "{left:?}");
    assert!(guest.unhold(Hold::Migration).unwrap());
    wait_for(&guest, "that it runs again", Report::is_running);
}

/// The link is slower than the guest by far, and the goal strict: only holding it
/// back can help.
#[test]
fn a_guest_that_outruns_the_link_is_held_back_until_it_fits() {
    let dir = tempfile::tempdir().unwrap();
    let settings = "fill_mib=32 hot_mib=16 rate_mib_s=max sweep_mib_s=0";
    let Some(guest) = boot_probe(dir.path(), settings, 1, 64) else {
        return;
    };
    let moved = migrate(&guest, |wish| {
        wish.bandwidth_max = 64 << 20;
        wish.goal.blackout_max_us = 50_000;
    });
    let moved = moved.unwrap();
    guest.end();
    verify_all_pages_at_rest(&moved.guest);
    println!("{:?}", moved.summary);
}

#[test]
fn a_target_that_is_not_there_costs_the_guest_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(guest) = boot_probe(dir.path(), "fill_mib=1", 1, 64) else {
        return;
    };
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let outcome = guest.departures().depart(&guest, &wish(nobody.to_string()));
    assert!(matches!(outcome, Ok(Outcome::Stayed(_))), "{outcome:?}");
    assert_eq!(guest.state(), Some(State::Running));
    let turns = report(&guest).unwrap().vcpus[0].turns;
    wait_for(&guest, "that it goes on", |report| {
        report.vcpus[0].turns > turns
    });
}
