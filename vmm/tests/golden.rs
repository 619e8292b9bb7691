//! The state of a machine as version 1 wrote it: every later release reads it, and a machine takes it.
//!
//! `GODWIT_WRITE_GOLDEN=1 cargo test -p vmm --test golden` makes what is missing, for a new version.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;

use shared_storage::gate::AlwaysOpen;
use vmm::codec;
use vmm::console::{Console, ConsoleMode};
use vmm::error::one_line;
use vmm::guest::{Guest, Hold, Parts};
use vmm::machine::{Backends, DiskAccess, MachineState};
use vmm_core::spec::Spec;

const CPUS: usize = 2;
const EFER_SVME: u64 = 1 << 12;

const DISK: &str = "";
const NET: &str = "[[net]]\ntap = 'gwgolden'\nmac = '52:54:00:00:00:01'\n";
/// Each file, and what its machine has besides a disk.
const FILES: [(&str, &str); 2] = [
    ("machine-state-1.bin", DISK),
    ("machine-state-1-net.bin", NET),
];

/// A tap for the machine that has a network card; gone when dropped.
struct Tap;

impl Tap {
    const NAME: &str = "gwgolden";

    fn ip(act: &str) {
        // Where it fails, opening the tap says so.
        let mut ip = Command::new("ip");
        ip.args(["tuntap", act, "dev", Self::NAME, "mode", "tap"]);
        if act == "add" {
            ip.arg("vnet_hdr");
        }
        let _ = ip.stderr(Stdio::null()).status();
    }

    fn make() -> Self {
        Self::ip("add");
        Self
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        Self::ip("del");
    }
}

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(file)
}

/// What the probe is built from, with two processors and a disk; why not, where it cannot be had.
fn parts(dir: &Path, more: &str) -> Result<Parts, String> {
    let kvm = vmm::kvm::open().map_err(|error| error.to_string())?;
    let (kernel, disk) = (dir.join("probe"), dir.join("disk"));
    std::fs::write(&kernel, probe::IMAGE).unwrap();
    std::fs::write(&disk, [0; 4096]).unwrap();
    let spec: Spec = toml::from_str(&format!(
        "name = 'probe'\nkernel = '{}'\ncpus = {CPUS}\nmemory_mib = 16\n[[disk]]\npath = '{}'\n{more}",
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
    let backends = Backends::open(&spec, console, &access);
    Ok(Parts {
        kvm,
        backends: backends.map_err(|error| one_line(&error))?,
        spec,
        masks: Vec::new(),
        notices,
        epoch: None,
    })
}

/// The probe, stopped as it runs.
fn saved(more: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::boot(parts(dir.path(), more).unwrap()).unwrap();
    guest.start().unwrap();
    guest.hold(Hold::Operator).unwrap();
    codec::encode(&guest.save().unwrap()).unwrap()
}

fn golden(file: &str) -> Vec<u8> {
    std::fs::read(path(file)).unwrap()
}

#[test]
fn a_machine_takes_what_version_1_wrote() {
    let _tap = Tap::make();
    for (file, more) in FILES {
        let dir = tempfile::tempdir().unwrap();
        let parts = match parts(dir.path(), more) {
            Ok(parts) => parts,
            Err(why) => {
                ground::skip(format_args!("{file}: {why}"));
                continue;
            }
        };
        let guest = Guest::empty(parts).unwrap();
        let state: MachineState = codec::decode(&golden(file)).unwrap();
        let before: MachineState = codec::decode(&golden(file)).unwrap();
        if let Err(why) = guest.arrive(state) {
            // It was written on another kind of processor, and KVM says so by a register.
            let why = one_line(&why);
            assert!(why.contains("model-specific register"), "{file}: {why}");
            ground::skip(format_args!("{file}: {why}"));
            continue;
        }
        let after = guest.save().unwrap();
        let bytes = |state: &dyn Fn(&MachineState) -> Vec<u8>| (state(&before), state(&after));
        let (sent, arrived) = bytes(&|state| codec::encode(&state.pci).unwrap());
        assert!(
            sent == arrived,
            "{file}: its devices are not what they were"
        );
        let (sent, arrived) = bytes(&|state| codec::encode(&state.serial).unwrap());
        assert!(
            sent == arrived,
            "{file}: its serial port is not what it was"
        );
        for (before, after) in before.vcpus.iter().zip(&after.vcpus) {
            assert_eq!(before.regs, after.regs, "{file}");
            assert_eq!(before.sregs.cr3, after.sregs.cr3, "{file}");
            assert_eq!(
                before.xcrs.xcrs[0].value, after.xcrs.xcrs[0].value,
                "{file}"
            );
        }
    }
}

#[test]
fn what_version_1_wrote_is_read() {
    for (file, more) in FILES {
        if std::env::var_os("GODWIT_WRITE_GOLDEN").is_some() && !path(file).exists() {
            let _tap = Tap::make();
            std::fs::write(path(file), saved(more)).unwrap();
        }
        let bytes = golden(file);
        let mut state: MachineState = codec::decode(&bytes).unwrap();
        state.check(CPUS).unwrap();
        state.check(CPUS + 1).unwrap_err();
        // Nothing of it was lost.
        assert!(codec::encode(&state).unwrap() == bytes, "{file}");
        assert!(state.vcpus.iter().all(|vcpu| !vcpu.is_nested()));
        state.vcpus[1].sregs.efer |= EFER_SVME;
        assert!(state.vcpus[1].is_nested());
    }
}
