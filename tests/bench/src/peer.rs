//! The hypervisors under test, and how each is started at its best with the probe.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A hypervisor.
pub enum Peer {
    /// Ours, from this path.
    Godwit(PathBuf),
    /// Debian's QEMU with its smallest machine.
    Microvm,
}

impl Peer {
    /// Its name in tables.
    pub fn name(&self) -> &'static str {
        match self {
            Peer::Godwit(_) => "godwit vmm",
            Peer::Microvm => "QEMU microvm",
        }
    }

    /// The command that boots `kernel` with the guest's serial port on standard output.
    pub fn command(&self, kernel: &Path, memory_mib: u64, cmdline: &str) -> Command {
        let mut command = match self {
            Peer::Godwit(vmm) => {
                let mut command = Command::new(vmm);
                command.args(["run", "--console", "stdio"]);
                command.args(["--memory", &memory_mib.to_string(), "--cmdline", cmdline]);
                command.arg("--kernel");
                command
            }
            Peer::Microvm => {
                let mut command = Command::new("qemu-system-x86_64");
                let devices = "microvm,x-option-roms=off,pit=off,pic=off,rtc=off,acpi=off";
                command.args(["-M", &format!("{devices},memory-backend=guest")]);
                let memory = format!("memory-backend-memfd,id=guest,size={memory_mib}M");
                command.args(["-object", &memory, "-m", &format!("{memory_mib}M")]);
                // The feature that a software KVM lists but cannot set.
                command.args(["-accel", "kvm", "-cpu", "host,-arch-capabilities"]);
                command.args([
                    "-nodefaults",
                    "-no-user-config",
                    "-display",
                    "none",
                    "-no-reboot",
                ]);
                command.args(["-serial", "stdio", "-append", cmdline, "-kernel"]);
                command
            }
        };
        command
            .arg(kernel)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}
