//! What a move does to memory on the target's side, and to processors that dirty none.

mod moving;

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use moving::{boot, boot_probe, migrate, verify_all_pages};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm::guest::Guest;
use vmm::machine::Inspect;
use vmm::vcpu::Vcpu;
use vmm_core::spec::Spec;

const MIB: u64 = 1 << 20;
const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";
/// Memory of a guest in huge pages of 2 MiB, and of a source and a target.
const HUGE_MIB: u64 = 64;
const HUGE_PAGES_WANTED: u64 = 2 * HUGE_MIB / 2;

/// A line of `/proc/self/smaps` about the mapping of a guest's memory, in KiB.
fn mapping_kib(guest: &Guest, field: &str) -> u64 {
    let start = guest.memory().get_host_address(GuestAddress(0)).unwrap() as u64;
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut is_it = false;
    for line in smaps.lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if let Some((from, to)) = word.split_once('-') {
            let address = |text| u64::from_str_radix(text, 16).unwrap();
            is_it = (address(from)..address(to)).contains(&start);
        } else if is_it && word.trim_end_matches(':') == field {
            return rest.trim().trim_end_matches(" kB").parse().unwrap();
        }
    }
    panic!("no {field} of the guest's memory in /proc/self/smaps");
}

/// Huge pages that are there beside those that others have; as many as before when dropped.
struct HugePages(String);

impl HugePages {
    fn take(wanted: u64) -> Option<Self> {
        let before = fs::read_to_string(HUGE_PAGES).ok()?;
        let had: u64 = before.trim().parse().ok()?;
        let pool = Self(before);
        fs::write(HUGE_PAGES, (had + wanted).to_string()).ok()?;
        let now: u64 = fs::read_to_string(HUGE_PAGES).ok()?.trim().parse().ok()?;
        (now >= had + wanted).then_some(pool)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(HUGE_PAGES, self.0.trim());
    }
}

#[test]
fn a_guest_in_huge_pages_arrives_in_huge_pages() {
    let Some(_pages) = HugePages::take(HUGE_PAGES_WANTED) else {
        return ground::skip(format_args!(
            "no {HUGE_PAGES_WANTED} huge pages can be had here (vm.nr_hugepages)"
        ));
    };
    let dir = tempfile::tempdir().unwrap();
    let Some(guest) = boot(dir.path(), |kernel| Spec {
        hugepages: true,
        ..spec(
            kernel,
            1,
            HUGE_MIB,
            "cpus=1 fill_mib=16 hot_mib=2 rate_mib_s=20",
        )
    }) else {
        return;
    };
    let moved = migrate(&guest, |wish| wish.goal.accept_longer = true).unwrap();
    guest.end();
    assert_eq!(mapping_kib(&moved.guest, "KernelPageSize"), 2048);
    verify_all_pages(&moved.guest);
    moved.guest.end();
}

#[test]
fn what_was_never_touched_takes_no_memory_on_the_target() {
    const MEMORY_MIB: u64 = 512;
    let dir = tempfile::tempdir().unwrap();
    let Some(guest) = boot_probe(dir.path(), "fill_mib=1", 1, MEMORY_MIB) else {
        return;
    };
    let moved = migrate(&guest, |wish| wish.goal.accept_longer = true).unwrap();
    let resident = [&guest, &moved.guest].map(|guest| mapping_kib(guest, "Rss") << 10);
    println!(
        "of {MEMORY_MIB} MiB resident: {} KiB at the source, {} at the target",
        resident[0] >> 10,
        resident[1] >> 10
    );
    // The kernel hands out huge pages where it may, two MiB for a byte.
    assert!(resident[1] < MEMORY_MIB * MIB / 8, "{resident:?}");
    guest.end();
    verify_all_pages(&moved.guest);
    moved.guest.end();
}

fn spec(kernel: String, cpus: u32, memory_mib: u64, cmdline: &str) -> Spec {
    Spec {
        name: "probe".to_owned(),
        cpus,
        memory_mib,
        kernel,
        initramfs: None,
        cmdline: cmdline.to_owned(),
        cpu_features: None,
        hugepages: false,
        disks: vec![],
        nets: vec![],
    }
}

/// How often each processor was interrupted.
fn interruptions(guest: &Arc<Guest>) -> Vec<u64> {
    let count = |vcpu: &Vcpu| {
        let mut exits = BTreeMap::new();
        vcpu.gauge().add_exits(&mut exits);
        exits["interrupted"]
    };
    let all = |machine: &dyn Inspect| machine.vcpus().iter().map(count).collect();
    guest.inspect(all).unwrap()
}

/// The link is slower than the first processor by far; the second one has nothing to do.
#[test]
fn a_processor_that_dirties_nothing_is_not_held_back() {
    let dir = tempfile::tempdir().unwrap();
    let settings = "cpus=1 fill_mib=32 hot_mib=16 rate_mib_s=max sweep_mib_s=0";
    let Some(guest) = boot(dir.path(), |kernel| spec(kernel, 2, 64, settings)) else {
        return;
    };
    let moved = migrate(&guest, |wish| {
        wish.bandwidth_max = 64 << 20;
        wish.goal.blackout_max_us = 50_000;
    });
    moved.unwrap().guest.end();
    let interruptions = interruptions(&guest);
    println!("interrupted so often: {interruptions:?}");
    // Both when it is measured how fast they stop, and one to be held back.
    assert!(interruptions[0] > 2 * interruptions[1], "{interruptions:?}");
    guest.end();
}
