//! Migrations that are cancelled, at any moment: the guest stays, and goes on at once.

mod moving;

use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use moving::{PATIENCE, boot_probe, count, migrate, migrate_until, verify_all_pages, wish};
use vmm::migration::departure::Departures;
use vmm::migration::{MigrationError, wire};
use vmm_core::lifecycle::State;
use vmm_core::migration::Phase;

/// Moments of a cancel lie within this; some come after the end.
const LONGEST_MOVE: Duration = Duration::from_millis(400);
/// Far below the time after which a socket gives up by itself.
const STUCK: Duration = Duration::from_secs(5);

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
    let (mut stayed, mut moved, mut took) = (0, 0, Vec::new());
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
                let cancelled = Instant::now();
                guest.departures().latest().cancel();
                cancelled
            }
        });
        // When it is over, nothing of it is left: no log of dirty pages, nobody who holds
        // processors back.
        let (outcome, over) = migrate_until(&guest, |wish| wish.goal.accept_longer = true);
        let cancelled = cancelling.join().unwrap();
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
                took.push(over.saturating_duration_since(cancelled));
                stayed += 1;
            }
        }
    }
    took.sort();
    let at = |percent: usize| took.get(took.len() * percent / 100).or(took.last());
    println!(
        "{stayed} cancelled, {moved} moved all the same; from the cancel to full speed: median \
         {:?}, 99 % {:?}, longest {:?}",
        at(50),
        at(99),
        took.last()
    );
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

/// Takes whatever connects, answers the offer and rounds without memory, and reads no memory.
fn deaf_target() -> (String, thread::JoinHandle<Vec<TcpStream>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let deaf = thread::spawn(move || {
        let mut control = listener.accept().unwrap().0;
        wire::receive(&mut control).unwrap();
        let accept = wire::Accept {
            holder: None,
            state_us: 0,
        };
        wire::send(&mut control, wire::Kind::Accept, 0, &accept).unwrap();
        let mut all: Vec<_> = (0..2).map(|_| listener.accept().unwrap().0).collect();
        all.push(control.try_clone().unwrap());
        thread::spawn(move || {
            while let Ok((header, _)) = wire::receive(&mut control) {
                if (header.kind, header.round) == (wire::Kind::Round, 0) {
                    let _ = wire::send(&mut control, wire::Kind::RoundDone, 0, &0u32);
                }
            }
        });
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
