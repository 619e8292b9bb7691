//! Machines on the local /dev/kvm, seen from inside by the probe guest.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use probe::abi::{REPORT_BYTES, REPORT_GPA};
use probe::config::{Config, RATE_MAX};
use probe::report::Report;
use shared_storage::gate::AlwaysOpen;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm::console::{Console, ConsoleMode};
use vmm::guest::{Guest, Hold, Parts};
use vmm::layout::{RAM_GAP_END, RAM_GAP_START};
use vmm::machine::{Backends, DiskAccess};
use vmm::memory::GuestMemory;
use vmm::notice::Notice;
use vmm_core::lifecycle::State;
use vmm_core::spec::Spec;

const LIMIT: Duration = Duration::from_mins(1);

struct Bench {
    parts: Parts,
    notices: Receiver<Notice>,
    _dir: tempfile::TempDir,
}

/// `None`, said loudly, where there is no KVM.
fn bench(cpus: u32, memory_mib: u64, config: &Config) -> Option<Bench> {
    let Ok(kvm) = vmm::kvm::open() else {
        ground::skip("no usable /dev/kvm here");
        return None;
    };
    let dir = tempfile::tempdir().unwrap();
    let kernel: PathBuf = dir.path().join("probe.elf");
    std::fs::write(&kernel, probe::IMAGE).unwrap();
    let spec: Spec = toml::from_str(&format!(
        "name = 'probe'\nkernel = '{}'\ncpus = {cpus}\nmemory_mib = {memory_mib}\ncmdline = '{config}'\n",
        kernel.display()
    ))
    .unwrap();
    let (sender, notices) = channel();
    let console = Arc::new(Console::new(&ConsoleMode::Off, sender.clone()).unwrap());
    let access = DiskAccess {
        gate: Arc::new(AlwaysOpen),
        root: None,
        deferred: false,
    };
    let backends = Backends::open(&spec, console, &access).unwrap();
    let parts = Parts {
        kvm,
        spec,
        backends,
        masks: Vec::new(),
        notices: sender,
        epoch: None,
    };
    Some(Bench {
        parts,
        notices,
        _dir: dir,
    })
}

fn report(memory: &GuestMemory) -> Option<Report> {
    let mut bytes = vec![0; REPORT_BYTES];
    memory
        .read_slice(&mut bytes, GuestAddress(REPORT_GPA))
        .unwrap();
    Report::decode(&bytes).ok()
}

fn wait(memory: &GuestMemory, what: &str, condition: impl Fn(&Report) -> bool) -> Report {
    let started = Instant::now();
    loop {
        let report = report(memory);
        if let Some(report) = &report
            && condition(report)
        {
            return report.clone();
        }
        assert!(
            started.elapsed() < LIMIT,
            "waited in vain for {what}: {report:?}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn turns(report: &Report) -> Vec<u64> {
    report.vcpus.iter().map(|vcpu| vcpu.turns).collect()
}

fn all_later(now: &Report, before: &Report) -> bool {
    turns(now)
        .iter()
        .zip(turns(before))
        .all(|(now, before)| *now > before)
}

fn busy(cpus: u64) -> Config {
    Config {
        cpus,
        fill_mib: 16,
        hot_mib: 4,
        rate_mib_s: 200,
        tick_us: 1000,
        ..Config::default()
    }
}

#[test]
fn a_paused_guest_stands_still_and_goes_on() {
    let Some(bench) = bench(2, 64, &busy(2)) else {
        return;
    };
    let guest = Guest::boot(bench.parts).unwrap();
    assert_eq!(guest.state(), Some(State::Built));
    guest.start().unwrap();
    let memory = guest.memory().clone();
    wait(&memory, "the probe", Report::is_running);
    for _ in 0..20 {
        guest.hold(Hold::Operator).unwrap();
        guest.hold(Hold::Lease).unwrap();
        assert!(!guest.unhold(Hold::Operator).unwrap());
        assert_eq!(guest.state(), Some(State::Paused));
        let before = report(&memory).unwrap();
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(turns(&report(&memory).unwrap()), turns(&before));
        assert!(guest.unhold(Hold::Lease).unwrap());
        let after = wait(&memory, "both processors", |now| all_later(now, &before));
        assert_eq!(after.bad_pages(), 0);
    }
    guest.end();
    assert!(bench.notices.try_recv().is_err());
}

#[test]
fn a_guest_reboots_in_place() {
    let Some(bench) = bench(1, 64, &busy(1)) else {
        return;
    };
    let guest = Guest::boot(bench.parts).unwrap();
    guest.start().unwrap();
    let memory = guest.memory().clone();
    wait(&memory, "the probe", Report::is_running);
    guest.reboot(|| {}).unwrap();
    assert_eq!(guest.reboots(), 1);
    let again = wait(&memory, "the probe again", Report::is_running);
    assert_eq!(again.bad_pages(), 0);
}

/// Memory of a guest goes on above the hole below 4 GiB; every page on both sides is its own.
#[test]
fn memory_lies_on_both_sides_of_the_hole() {
    const HOLE_MIB: u64 = RAM_GAP_START >> 20;
    const MARGIN_MIB: u64 = 16;
    let config = Config {
        // The probe fills from 16 MiB on.
        skip_mib: HOLE_MIB - 16 - MARGIN_MIB,
        fill_mib: 2 * MARGIN_MIB,
        sweep_mib_s: RATE_MAX,
        ..busy(2)
    };
    if let Err(why) = vmm::memory::map(HOLE_MIB + MARGIN_MIB, false) {
        ground::skip(why);
        return;
    }
    let Some(bench) = bench(2, HOLE_MIB + MARGIN_MIB, &config) else {
        return;
    };
    let guest = Guest::boot(bench.parts).unwrap();
    guest.start().unwrap();
    let memory = guest.memory().clone();
    let swept = wait(&memory, "two sweeps", |now| now.sweeps() > 3);
    assert_eq!(swept.bad_pages(), 0);
    assert_eq!(swept.fill_pages, 2 * MARGIN_MIB * 256);
    let word = |address| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
    for edge in [RAM_GAP_START - 4096, RAM_GAP_END] {
        assert_ne!(word(edge), 0, "{edge:#x} was filled");
    }
}

/// State through its encoded form, memory by copying: what a migration does, all at once.
#[test]
fn a_saved_guest_goes_on_in_another_machine() {
    let (Some(source), Some(target)) = (bench(2, 64, &busy(2)), bench(2, 64, &busy(2))) else {
        return;
    };
    let source = Guest::boot(source.parts).unwrap();
    source.start().unwrap();
    wait(source.memory(), "the probe", Report::is_running);
    let target = Guest::empty(target.parts).unwrap();
    source.hold(Hold::Migration).unwrap();
    let before = report(source.memory()).unwrap();
    let bytes = vmm::codec::encode(&source.save().unwrap()).unwrap();
    copy(source.memory(), target.memory());
    source.end();
    target.arrive(vmm::codec::decode(&bytes).unwrap()).unwrap();
    assert!(target.unhold(Hold::Migration).unwrap());
    let sweeps = before.sweeps();
    let after = wait(target.memory(), "both processors and a sweep", |now| {
        all_later(now, &before) && now.sweeps() > sweeps + 2
    });
    assert_eq!(after.bad_pages(), 0);
    assert!(after.now_ns() >= before.now_ns());
}

fn copy(from: &GuestMemory, to: &GuestMemory) {
    for region in from.iter() {
        let mut bytes = vec![0; region.len() as usize];
        from.read_slice(&mut bytes, region.start_addr()).unwrap();
        to.write_slice(&bytes, region.start_addr()).unwrap();
    }
}
