//! The state of a machine as version 1 wrote it: every later release reads it.
//!
//! `GODWIT_WRITE_GOLDEN=1 cargo test -p vmm --test golden` makes the file anew, for a new version.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;

use shared_storage::gate::AlwaysOpen;
use vmm::codec;
use vmm::console::{Console, ConsoleMode};
use vmm::guest::{Guest, Hold, Parts};
use vmm::machine::{Backends, DiskAccess, MachineState};
use vmm_core::spec::Spec;

const CPUS: usize = 2;
const EFER_SVME: u64 = 1 << 12;

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/machine-state-1.bin")
}

/// The probe with two processors and a disk, stopped as it runs.
fn saved() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (kernel, disk) = (dir.path().join("probe"), dir.path().join("disk"));
    std::fs::write(&kernel, probe::IMAGE).unwrap();
    std::fs::write(&disk, [0; 4096]).unwrap();
    let spec: Spec = toml::from_str(&format!(
        "name = 'probe'\nkernel = '{}'\ncpus = {CPUS}\nmemory_mib = 16\n[[disk]]\npath = '{}'\n",
        kernel.display(),
        disk.display()
    ))
    .unwrap();
    let (notices, _inbox) = channel();
    let console = Arc::new(Console::new(&ConsoleMode::Off, notices.clone()).unwrap());
    let access = DiskAccess {
        gate: Arc::new(AlwaysOpen),
        root: None,
        deferred: false,
    };
    let parts = Parts {
        kvm: vmm::kvm::open().unwrap(),
        backends: Backends::open(&spec, console, &access).unwrap(),
        spec,
        masks: Vec::new(),
        notices,
        epoch: None,
    };
    let guest = Guest::boot(parts).unwrap();
    guest.start().unwrap();
    guest.hold(Hold::Operator).unwrap();
    codec::encode(&guest.save().unwrap()).unwrap()
}

#[test]
fn what_version_1_wrote_is_read() {
    if std::env::var_os("GODWIT_WRITE_GOLDEN").is_some() {
        std::fs::create_dir_all(file().parent().unwrap()).unwrap();
        std::fs::write(file(), saved()).unwrap();
    }
    let bytes = std::fs::read(file()).unwrap();
    let mut state: MachineState = codec::decode(&bytes).unwrap();
    state.check(CPUS).unwrap();
    state.check(CPUS + 1).unwrap_err();
    // Nothing of it was lost.
    assert!(codec::encode(&state).unwrap() == bytes);
    assert!(state.vcpus.iter().all(|vcpu| !vcpu.is_nested()));
    state.vcpus[1].sregs.efer |= EFER_SVME;
    assert!(state.vcpus[1].is_nested());
}
