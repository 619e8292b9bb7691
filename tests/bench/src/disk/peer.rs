//! The hypervisors under test, and how each is started at its best on a host of the lab.

use std::path::{Path, PathBuf};
use std::process::Command;

use lab::artefacts::PROGRAMS;
use lab::host::DATASTORE;

const QEMU: &str = "qemu-system-x86_64";
/// What QEMU's machine boots an ELF kernel by.
const FIRMWARE: [&str; 3] = [
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/pvh.bin",
];
const GUEST_MIB: u32 = 192;
/// A system that does nothing but wait for a shell's commands; its disk is never written, so that
/// both guests share it.
const CMDLINE: &str = "console=ttyS0 panic=1 quiet mitigations=off nokaslr tsc=reliable no_timer_check \
    random.trust_cpu=on cryptomgr.notests selinux=0 apparmor=0 audit=0 net.ifnames=0 \
    root=/dev/vda rootflags=ro init=/bin/sh";

/// A hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Ours.
    Godwit,
    /// Debian's QEMU: virtio-blk with a thread of its own, around the page cache, by Linux AIO.
    Qemu,
}

impl Peer {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Godwit => "godwit vmm",
            Self::Qemu => "QEMU virtio-blk",
        }
    }

    /// Its name in names of files.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Godwit => "godwit",
            Self::Qemu => "qemu",
        }
    }

    /// The command line, for a host's shell, that boots a guest with `image` as its second disk.
    pub fn command(self, image: &str, format: &str) -> String {
        let system = format!("{DATASTORE}/images/debian");
        match self {
            Self::Godwit => format!(
                "exec {PROGRAMS}/vmm run --kernel {system}/vmlinux --initramfs {system}/initramfs.cpio \
                 --memory {GUEST_MIB} --cmdline '{CMDLINE}' --disk path={system}/root.raw,readonly=on \
                 --disk path={image},format={format}"
            ),
            // The host has no libraries of its own; the loader takes those beside the program.
            Self::Qemu => format!(
                "exec {PROGRAMS}/ld-linux-x86-64.so.2 --library-path {PROGRAMS} {PROGRAMS}/{QEMU} -L {PROGRAMS} \
                 -nodefaults -no-user-config -display none -no-reboot -machine q35,accel=kvm -cpu host \
                 -m {GUEST_MIB}M -serial stdio -kernel {system}/vmlinux -initrd {system}/initramfs.cpio \
                 -append '{CMDLINE}' -object iothread,id=disks \
                 -drive file={system}/root.raw,format=raw,if=none,id=root,readonly=on,file.locking=off \
                 -device virtio-blk-pci,drive=root \
                 -drive file={image},format={format},if=none,id=data,cache=none,aio=native,discard=unmap \
                 -device virtio-blk-pci,drive=data,iothread=disks"
            ),
        }
    }
}

/// QEMU's program with all that it needs on a machine that has nothing.
pub fn qemu_files() -> lab::Result<Vec<PathBuf>> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let program = std::env::split_paths(&paths)
        .map(|directory| directory.join(QEMU))
        .find(|program| program.exists())
        .ok_or_else(|| format!("{QEMU} is missing; apt-get install qemu-system-x86"))?;
    let mut files = libraries(&program)?;
    files.push(program);
    files.extend(FIRMWARE.map(PathBuf::from));
    Ok(files)
}

/// The libraries of `program`, its loader too.
fn libraries(program: &Path) -> lab::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output();
    let output = output.map_err(|error| format!("cannot start ldd: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    // `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader.
    let path = |line: &str| {
        let word = line.split_whitespace().find(|word| word.starts_with('/'))?;
        Some(PathBuf::from(word))
    };
    Ok(said.lines().filter_map(path).collect())
}
