//! What the guest reads and writes is told by taking pages away from it. The probe guest sees to
//! it that none of them is ever lost, whatever happens meanwhile.

mod moving;
mod written_only;

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use moving::{boot, boot_probe, count, migrate, report, verify_all_pages, wait_for};
use probe::report::Report;
use vm_memory::{Bytes, GuestAddress};
use vmm::guest::{Guest, Hold};
use vmm_core::control::MemorySample;
use vmm_core::spec::Spec;
use written_only::{MEMORY_MIB, SETTINGS, only_what_is_written_is_told};

const MIB: u64 = 1 << 20;
/// The longest of what the samplers wait for.
const PERIOD: Duration = Duration::from_secs(11);
/// How many huge pages the kernel keeps for hugetlbfs.
const POOL: &str = "/proc/sys/vm/nr_hugepages";
const HUGE_PAGE_MIB: u64 = 2;

/// Looks at the guest's memory as if a period had passed since it looked last.
struct Eager {
    began: Instant,
    looks: AtomicU64,
}

impl Eager {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            looks: AtomicU64::new(0),
        }
    }

    fn look(&self, guest: &Guest) -> Option<MemorySample> {
        let looks = self.looks.fetch_add(1, Ordering::Relaxed);
        guest.sample_memory(self.began + PERIOD * looks as u32)
    }

    fn keep_looking(&self, guest: &Guest, enough: &AtomicBool) {
        while !enough.load(Ordering::Relaxed) {
            self.look(guest);
        }
    }
}

/// Does `act` while `guest` is sampled as fast as it can be; how often it was.
fn sampled<T>(guest: &Arc<Guest>, eager: &Eager, act: impl FnOnce() -> T) -> T {
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| eager.keep_looking(guest, &enough));
        let result = act();
        enough.store(true, Ordering::Relaxed);
        result
    })
}

fn is_told(guest: &Guest) -> bool {
    // Two looks begin and end a period.
    let eager = Eager::new();
    let told = (0..8).any(|_| {
        eager
            .look(guest)
            .is_some_and(|told| told.accessed.is_some())
    });
    if !told {
        ground::skip("userfaultfd may not be used here, so accesses are not sampled");
    }
    told
}

#[test]
fn memory_that_is_only_read_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let settings = "fill_mib=64 sweep_mib_s=max";
    let Some(guest) = boot_probe(dir.path(), settings, 1, 320) else {
        return;
    };
    if !is_told(&guest) {
        return;
    }
    // What was touched once and never again.
    for at in (96 * MIB..288 * MIB).step_by(4096) {
        guest.memory().write_obj(1u64, GuestAddress(at)).unwrap();
    }
    let eager = Eager::new();
    let mut told = None;
    for _ in 0..20 {
        told = eager.look(&guest);
        let sweeps = report(&guest).unwrap().sweeps();
        wait_for(&guest, "two sweeps", |now| now.sweeps() >= sweeps + 2);
    }
    let told = told.expect("a sample");
    println!("{told:?}: {} MiB in use", told.active_mib());
    assert!(told.touched_mib.abs_diff(64 + 192) < 30, "{told:?}");
    assert!(told.active_mib().abs_diff(64) < 30, "{told:?}");
    assert!(told.written_mib() < 16, "{told:?}");
}

#[test]
fn no_page_is_lost_while_the_guest_moves_stands_still_and_reboots() {
    let dir = tempfile::tempdir().unwrap();
    let settings = "fill_mib=48 hot_mib=16 rate_mib_s=200 sweep_mib_s=max";
    let Some(mut guest) = boot_probe(dir.path(), settings, 2, 64) else {
        return;
    };
    if !is_told(&guest) {
        return;
    }
    let (eager, began) = (Eager::new(), Instant::now());
    let (wanted, limit) = (count("GODWIT_SAMPLED_MOVES", 12), Duration::from_secs(20));
    let mut done = 0;
    while done < wanted && (done < 2 || began.elapsed() < limit) {
        done += 1;
        sampled(&guest, &eager, || verify_all_pages(&guest));
        sampled(&guest, &eager, || {
            for _ in 0..5 {
                guest.hold(Hold::Operator).unwrap();
                guest.save().unwrap();
                guest.unhold(Hold::Operator).unwrap();
            }
        });
        let moved = sampled(&guest, &eager, || {
            migrate(&guest, |wish| wish.goal.accept_longer = true).unwrap()
        });
        assert!(moved.summary.verified);
        guest.end();
        guest = moved.guest;
        verify_all_pages(&guest);
    }
    let looks = eager.looks.load(Ordering::Relaxed);
    println!("{done} moves with {looks} looks in {:?}", began.elapsed());
    sampled(&guest, &eager, || {
        guest.reboot(|| {}).unwrap();
        wait_for(&guest, "that it runs again", Report::is_running);
        verify_all_pages(&guest);
    });
    println!("{:?}", eager.look(&guest));
}

/// Huge pages in the kernel's pool beside those that are there; gone with this value.
struct Pool {
    before: u64,
}

impl Pool {
    fn enlarge(mib: u64) -> Result<Self, String> {
        let pages = || -> io::Result<u64> {
            let text = fs::read_to_string(POOL)?;
            text.trim().parse().map_err(io::Error::other)
        };
        let before = pages().map_err(|error| format!("no huge pages here: {error}"))?;
        let wanted = before + mib / HUGE_PAGE_MIB;
        fs::write(POOL, wanted.to_string())
            .map_err(|error| format!("cannot reserve huge pages: {error}; run as root"))?;
        let pool = Self { before };
        match pages() {
            Ok(got) if got >= wanted => Ok(pool),
            _ => Err(format!("no {mib} MiB in one piece for huge pages")),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = fs::write(POOL, self.before.to_string());
    }
}

#[test]
fn in_huge_pages_only_what_is_written_is_told() {
    let _pool = match Pool::enlarge(MEMORY_MIB) {
        Ok(pool) => pool,
        Err(why) => return ground::skip(format_args!("a guest in huge pages: {why}")),
    };
    let dir = tempfile::tempdir().unwrap();
    let guest = boot(dir.path(), |kernel| Spec {
        name: "probe".to_owned(),
        cpus: 1,
        memory_mib: MEMORY_MIB,
        kernel,
        initramfs: None,
        cmdline: SETTINGS.to_owned(),
        cpu_features: None,
        hugepages: true,
        disks: vec![],
        nets: vec![],
    });
    let Some(guest) = guest else { return };
    only_what_is_written_is_told(&guest, "in huge pages");
    verify_all_pages(&guest);
    guest.end();
}
