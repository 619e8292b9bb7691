//! `vmm run`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Args;
use shared_storage::gate::AlwaysOpen;
use shared_storage::{StoreError, fence};
use vmm_core::compat::CpuFeatures;
use vmm_core::lifecycle::Ending;
use vmm_core::spec::{DiskSpec, NetSpec, Spec};

use super::options;
use crate::api::Door;
use crate::console::{Console, ConsoleMode};
use crate::drive::drive;
use crate::error::{one_line, with_remedy};
use crate::guest::{Guest, Parts};
use crate::lease::{Lease, LeaseFlags};
use crate::machine::{BackendError, Backends, DiskAccess};
use crate::vcpu::cpuid;

/// A lock that outlives its host is waited for so long: an NFSv4 server's lease is 90 s by default.
const LOCK_LIMIT: Duration = Duration::from_mins(2);

/// Settings that make a spec by themselves; with a file they would contradict it.
#[derive(Debug, Args)]
#[group(id = "flags", multiple = true, conflicts_with = "spec")]
pub struct SpecFlags {
    /// Name of the guest, for messages.
    #[arg(long, default_value = "guest")]
    name: String,
    /// Kernel: a bzImage (vmlinuz) or an ELF image (vmlinux).
    #[arg(long)]
    kernel: Option<String>,
    /// Initial RAM file system.
    #[arg(long)]
    initramfs: Option<String>,
    /// Kernel command line.
    #[arg(long)]
    cmdline: Option<String>,
    /// Virtual processors [default: 1]
    #[arg(long)]
    cpus: Option<u32>,
    /// Memory in MiB; 2G means 2048 [default: 512]
    #[arg(long, value_parser = memory_mib)]
    memory: Option<u64>,
    /// Take memory from the huge pages that the host has reserved.
    #[arg(long)]
    hugepages: bool,
    /// The most that its processors may be able to do, as `vmm cpu-features` prints it; all
    /// that this host can when absent
    #[arg(long, value_name = "FEATURES")]
    cpu_features: Option<CpuFeatures>,
    /// A disk: path=...,format=raw|qcow2,readonly=on|off,direct=on|off [default: raw, off, on];
    /// direct is around the host's page cache
    #[arg(long = "disk", value_parser = options::disk, value_name = "SETTINGS")]
    disks: Vec<DiskSpec>,
    /// A network card: tap=NAME|fd=N,mac=...; the tap must be there (`ip tuntap add dev tap0 mode
    /// tap user $USER vnet_hdr`)
    #[arg(long = "net", value_parser = options::net, value_name = "SETTINGS")]
    nets: Vec<NetSpec>,
}

/// Where the guest's console and control are.
#[derive(Debug, Args)]
pub struct Doors {
    /// Where the serial port leads: stdio, socket=PATH, file=PATH or off. On a terminal,
    /// control and ] ends the guest.
    #[arg(long, default_value = "stdio")]
    pub console: ConsoleMode,
    /// Answer control requests on this Unix socket.
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Arguments {
    /// Spec of the guest (TOML); its paths are relative to it.
    spec: Option<PathBuf>,
    #[command(flatten)]
    flags: SpecFlags,
    #[command(flatten)]
    doors: Doors,
    #[command(flatten)]
    lease: LeaseFlags,
}

fn memory_mib(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no amount of memory; write MiB as 512, or 2G");
    let (digits, unit) = match text.strip_suffix(['G', 'g']) {
        Some(digits) => (digits, 1024),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
    };
    let amount: u64 = digits.parse().map_err(|_| wrong())?;
    amount.checked_mul(unit).ok_or_else(wrong)
}

pub fn main(arguments: Arguments) -> Result<Ending, String> {
    let mut spec = match &arguments.spec {
        Some(path) => read_spec(path)?,
        None => arguments.flags.spec()?,
    };
    let (notices, inbox) = mpsc::channel();
    let console = Console::new(&arguments.doors.console, notices.clone());
    let console = Arc::new(console.map_err(|error| one_line(&error))?);
    let lease = match arguments
        .lease
        .citizen()
        .map_err(|error| one_line(&error))?
    {
        Some(citizen) => {
            let checked = citizen.check_disks(&spec);
            checked.map_err(|error| one_line(&error))?;
            Some(Arc::new(citizen.adopt().map_err(|error| one_line(&error))?))
        }
        None => None,
    };
    if let Some(lease) = &lease {
        find_disks(&mut spec, lease).map_err(|error| one_line(&error))?;
    }
    let access = disk_access(lease.as_deref());
    let door = arguments.doors.api_socket.as_deref().map(Door::open);
    let mut door = door.transpose().map_err(|error| one_line(&error))?;
    let kvm = crate::kvm::open().map_err(|error| one_line(&error))?;
    let backends = Backends::open(&spec, console, &access).map_err(|error| one_line(&error))?;
    if lease.is_some() {
        await_disks(&backends).map_err(|error| one_line(&error))?;
    }
    let masks = spec.cpu_features.map(cpuid::masks).unwrap_or_default();
    let guest = Guest::boot(Parts {
        kvm,
        spec,
        backends,
        masks,
        notices,
        epoch: None,
    });
    let guest = guest.map_err(|error| one_line(&error))?;
    if let Some(lease) = &lease {
        guest.set_lease(lease.clone());
    }
    guest.start().map_err(|error| one_line(&error))?;
    if lease.is_none() {
        tracing::warn!(
            "this guest has no lease: nothing but its images' locks keeps others from running it, \
             too; with --datastore it has one"
        );
    }
    if let Some(door) = &mut door {
        door.serve(guest.clone())
            .map_err(|error| format!("cannot start the control API: {error}"))?;
    }
    if let Some(lease) = &lease {
        lease
            .guard(guest.clone())
            .map_err(|error| format!("cannot watch over the lease: {error}"))?;
    }
    Ok(drive(&guest, &inbox))
}

/// A takeover, or the successor of a process that died, moves the disks to files of its
/// epoch: only now that the lease is ours is it certain where they lie.
fn find_disks(spec: &mut Spec, lease: &Lease) -> Result<(), StoreError> {
    let (root, epoch) = (lease.citizen().store().root(), lease.epoch());
    for disk in &mut spec.disks {
        let path = fence::resolve(&root.join(&disk.path), epoch.unwrap_or_default())?;
        disk.path = path.to_string_lossy().into_owned();
    }
    Ok(())
}

/// By the lease whoever has a disk locked is gone.
fn await_disks(backends: &Backends) -> Result<(), BackendError> {
    backends.await_disks(Instant::now() + LOCK_LIMIT, |locked| {
        let (error, limit_s) = (one_line(locked), LOCK_LIMIT.as_secs());
        tracing::warn!(
            error,
            "waiting for up to {limit_s} s until the storage's server gives up on the host that had it"
        );
    })
}

/// Under a lease every byte passes its gate, and images lie in its datastore.
fn disk_access(lease: Option<&Lease>) -> DiskAccess {
    match lease {
        Some(lease) => DiskAccess {
            gate: lease.gate(),
            root: Some(lease.citizen().store().root().to_owned()),
            deferred: true,
        },
        None => DiskAccess {
            gate: Arc::new(AlwaysOpen),
            root: None,
            deferred: false,
        },
    }
}

impl SpecFlags {
    /// The spec that the flags make.
    pub fn spec(self) -> Result<Spec, String> {
        let kernel = self
            .kernel
            .ok_or("no guest is named; give a spec file, or at least --kernel")?;
        let spec = Spec {
            name: self.name,
            cpus: self.cpus.unwrap_or(1),
            memory_mib: self.memory.unwrap_or(512),
            kernel,
            initramfs: self.initramfs,
            cmdline: self.cmdline.unwrap_or_default(),
            cpu_features: self.cpu_features,
            hugepages: self.hugepages,
            disks: self.disks,
            nets: self.nets,
        };
        spec.validate().map_err(|error| error.to_string())?;
        Ok(spec)
    }
}

/// Read and check a spec file; paths in it become relative to this process.
pub fn read_spec(path: &Path) -> Result<Spec, String> {
    let shown = path.display();
    let text = fs::read_to_string(path).map_err(|error| match error.kind() {
        ErrorKind::InvalidData => {
            format!(
                "the spec {shown} is no text; a spec is a TOML file, a kernel goes with --kernel"
            )
        }
        _ => format!("cannot read the spec {shown}: {}", with_remedy(&error)),
    })?;
    let mut spec: Spec = toml::from_str(&text).map_err(|error| spec_error(path, &text, &error))?;
    spec.validate()
        .map_err(|error| format!("the spec {shown} cannot be used: {error}"))?;
    let dir = path.parent().unwrap_or(Path::new(""));
    let place = |file: &mut String| *file = dir.join(&*file).to_string_lossy().into_owned();
    place(&mut spec.kernel);
    spec.initramfs.as_mut().map(place);
    for disk in &mut spec.disks {
        place(&mut disk.path);
    }
    Ok(spec)
}

/// The parser's message with the line, on one line.
fn spec_error(path: &Path, text: &str, error: &toml::de::Error) -> String {
    let line = error
        .span()
        .map_or(1, |span| text[..span.start].matches('\n').count() + 1);
    let message = error.message().replace('\n', " ");
    format!("the spec {}, line {line}: {message}", path.display())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vmm_core::spec::DiskFormat;

    use super::*;

    #[test]
    fn memory_is_read() {
        assert_eq!(memory_mib("512"), Ok(512));
        assert_eq!(memory_mib("2G"), Ok(2048));
        assert_eq!(memory_mib("64m"), Ok(64));
        for text in [
            "",
            "G",
            "-1",
            "1T",
            "99999999999999999999",
            "18446744073709551615G",
        ] {
            memory_mib(text).unwrap_err();
        }
    }

    #[test]
    fn a_spec_names_its_files_from_where_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web1.toml");
        fs::write(
            &path,
            "name = 'web1'\nkernel = 'vmlinuz'\n[[disk]]\npath = '/abs/d'\n",
        )
        .unwrap();
        let spec = read_spec(&path).unwrap();
        assert_eq!(spec.kernel, dir.path().join("vmlinuz").to_str().unwrap());
        assert_eq!(spec.disks[0].path, "/abs/d");
    }

    #[test]
    fn bad_specs_are_named_with_their_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web1.toml");
        for (text, part) in [
            (
                "name = 'web1'\nkernel = 'k'\ncolour = 'red'\n",
                "line 3: unknown field `colour`",
            ),
            ("name = 'web1'\nkernel = 'k'\ncpus = 'two'\n", "line 3"),
            ("name = 'web1'\nname = 'web2'\n", "line 2: duplicate key"),
            ("name = 'web1'\n", "missing field `kernel`"),
            (
                "name = 'web1'\nkernel = 'k'\nmemory_mib = 3\n",
                "cannot be had",
            ),
        ] {
            fs::write(&path, text).unwrap();
            let error = read_spec(&path).unwrap_err();
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
        let error = read_spec(&dir.path().join("none")).unwrap_err();
        assert!(error.contains("none: No such file"), "{error}");
    }

    fn disks() -> impl Strategy<Value = Vec<DiskSpec>> {
        let disk =
            (".+", any::<[bool; 3]>()).prop_map(|(path, [qcow2, readonly, direct])| DiskSpec {
                path,
                format: if qcow2 {
                    DiskFormat::Qcow2
                } else {
                    DiskFormat::Raw
                },
                readonly,
                direct,
            });
        prop::collection::vec(disk, 0..4)
    }

    fn nets() -> impl Strategy<Value = Vec<NetSpec>> {
        let net = ("[a-z]{1,15}", any::<u32>()).prop_map(|(tap, number)| {
            let [a, b, c, d] = number.to_be_bytes();
            let mac = format!("52:54:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
            let mac = mac.parse().unwrap();
            NetSpec { tap, mac }
        });
        prop::collection::vec(net, 0..4)
    }

    proptest! {
        #[test]
        fn no_amount_of_memory_panics(text: String, digits in "[0-9]{1,24}[gGmM]?") {
            let _ = (memory_mib(&text), memory_mib(&digits));
        }

        #[test]
        fn memory_is_what_was_written(amount in 0u64..1 << 32) {
            prop_assert_eq!(memory_mib(&format!("{amount}")), Ok(amount));
            prop_assert_eq!(memory_mib(&format!("{amount}M")), Ok(amount));
            prop_assert_eq!(memory_mib(&format!("{amount}g")), Ok(amount << 10));
        }

        #[test]
        fn no_text_that_is_a_spec_or_nearly_one_panics(
            text: String,
            lines in prop::collection::vec("(name|kernel|cpus|memory_mib|\\[\\[disk\\]\\]|path|format) ?=? ?('[a-z]*'|[0-9]{1,22}|true)", 0..8),
        ) {
            for text in [text, lines.join("\n")] {
                match toml::from_str::<Spec>(&text) {
                    Ok(spec) => drop(spec.validate()),
                    Err(error) => {
                        let line = spec_error(Path::new("web1.toml"), &text, &error);
                        prop_assert!(!line.contains('\n'), "{line:?}");
                    }
                }
            }
        }

        #[test]
        fn a_spec_that_is_written_is_read_as_it_was(
            name in "[a-z0-9-]{1,64}",
            numbers: (u32, u32),
            paths in (".*", prop::option::of(".*")),
            cmdline in "[ -~]*",
            hugepages: bool,
            disks in disks(),
            nets in nets(),
        ) {
            let spec = Spec {
                name,
                cpus: numbers.0,
                memory_mib: numbers.1.into(),
                kernel: paths.0,
                initramfs: paths.1,
                cmdline,
                cpu_features: None,
                hugepages,
                disks,
                nets,
            };
            let text = toml::to_string(&spec).unwrap();
            prop_assert_eq!(toml::from_str::<Spec>(&text).unwrap(), spec);
        }
    }
}
