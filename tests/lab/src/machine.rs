//! How QEMU is asked for one emulated host.
//!
//! Template and clones must have the same devices in the same order: the arguments are made in
//! one place, and only names of files and sockets differ.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use rustix::fs::{Access, access};

/// The program.
pub const QEMU: &str = "qemu-system-x86_64";
/// Size of every host's second disk (the datastore's on the storage host); sparse.
pub const DATA_DISK_BYTES: u64 = 16 << 30;
/// Size of the disk with our programs; sparse.
pub const TOOLS_DISK_BYTES: u64 = 1 << 30;

/// What saves seconds of boot, and keeps an emulated clock from being distrusted.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 panic=1 quiet mitigations=off nokaslr tsc=reliable \
    no_timer_check random.trust_cpu=on cryptomgr.notests apparmor=0 audit=0 rcupdate.rcu_expedited=1 \
    ipv6.disable=1 godwit.coldplug=off";

/// What the emulated hosts run on, found out once.
pub static ACCELERATOR: LazyLock<Accelerator> = LazyLock::new(Accelerator::find);

/// What the emulated machine's kernel is told of its time-stamp counter, which is this machine's:
/// measured by itself while other work delays the emulation, it comes out wrong by factors, and so
/// does every clock. Rounded, so that the same machine gives the same template; the kernel refines it.
static TSC_KHZ: LazyLock<u64> = LazyLock::new(|| {
    const ROUNDED_TO_KHZ: u64 = 5000;
    let (begun, first) = (Instant::now(), ticks());
    while begun.elapsed() < Duration::from_millis(20) {
        std::hint::spin_loop();
    }
    let khz = (ticks() - first) * 1000 / begun.elapsed().as_micros().max(1) as u64;
    (khz + ROUNDED_TO_KHZ / 2) / ROUNDED_TO_KHZ * ROUNDED_TO_KHZ
});

fn ticks() -> u64 {
    // SAFETY: RDTSC is there on every x86-64 processor and touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// How guests inside the hosts get their /dev/kvm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The machine's own KVM nests.
    Nested,
    /// QEMU emulates an EPYC with SVM and nested paging.
    Emulated,
}

impl Accelerator {
    fn find() -> Self {
        let nests = ["kvm_amd", "kvm_intel"].iter().any(|module| {
            std::fs::read_to_string(format!("/sys/module/{module}/parameters/nested"))
                .is_ok_and(|answer| matches!(answer.trim(), "1" | "Y"))
        });
        let usable = access("/dev/kvm", Access::READ_OK | Access::WRITE_OK).is_ok();
        if nests && usable {
            Self::Nested
        } else {
            Self::Emulated
        }
    }

    fn arguments(self, lacks: Option<&str>) -> [String; 4] {
        let (accelerator, processor) = match self {
            Self::Nested => ("kvm", "host"),
            Self::Emulated => ("tcg,thread=multi", "EPYC,+svm,+npt"),
        };
        let lacks = lacks.map_or(String::new(), |feature| format!(",-{feature}"));
        let processor = format!("{processor}{lacks}");
        ["-accel", accelerator, "-cpu", &processor].map(str::to_owned)
    }
}

/// The files of one machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What QEMU calls it.
    pub name: String,
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initramfs.
    pub initramfs: PathBuf,
    /// A feature, as QEMU calls it, that its processor lacks beside the others'.
    pub lacks: Option<&'static str>,
    /// RAM size.
    pub memory_mib: u32,
    /// File that holds the RAM.
    pub memory: PathBuf,
    /// Whether the file is written (the template) or only read (a clone).
    pub memory_shared: bool,
    /// Disk with our programs.
    pub tools_disk: PathBuf,
    /// Disk for data.
    pub data_disk: PathBuf,
    /// Where its sockets lie.
    pub sockets: PathBuf,
    /// Sockets of the switch ports: management, storage.
    pub cables: [PathBuf; 2],
    /// Where the console is recorded.
    pub console_log: PathBuf,
}

impl Machine {
    /// QEMU's control socket.
    pub fn qmp_socket(&self) -> PathBuf {
        self.sockets.join("qmp")
    }

    /// The agent's port.
    pub fn agent_socket(&self) -> PathBuf {
        self.sockets.join("agent")
    }

    /// The serial console.
    pub fn console_socket(&self) -> PathBuf {
        self.sockets.join("console")
    }

    /// What decides whether a template fits: everything that a clone must share with it.
    pub fn shape(&self) -> String {
        format!(
            "{:?} {} {KERNEL_COMMAND_LINE} {DATA_DISK_BYTES} {TOOLS_DISK_BYTES}",
            *ACCELERATOR, self.memory_mib
        )
    }

    /// The command that starts it; a clone waits for its state.
    pub fn command(&self) -> Command {
        let mut command = Command::new(QEMU);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-smp",
            "1",
        ]);
        command.args(["-name", &format!("godwit-lab-{}", self.name)]);
        command.args([
            "-machine",
            "pc,memory-backend=ram",
            "-m",
            &format!("{}M", self.memory_mib),
        ]);
        command.args(ACCELERATOR.arguments(self.lacks));
        command.arg("-object").arg(format!(
            "memory-backend-file,id=ram,size={}M,mem-path={},share={}",
            self.memory_mib,
            self.memory.display(),
            if self.memory_shared { "on" } else { "off" },
        ));
        command
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs);
        let tsc = match *ACCELERATOR {
            Accelerator::Emulated => format!(" tsc_early_khz={}", *TSC_KHZ),
            Accelerator::Nested => String::new(),
        };
        command.args(["-append", &format!("{KERNEL_COMMAND_LINE}{tsc}")]);
        command
            .arg("-qmp")
            .arg(listening("unix:", &self.qmp_socket()));
        command.arg("-chardev").arg(format!(
            "{},logfile={},logappend=on",
            listening("socket,id=console,path=", &self.console_socket()),
            self.console_log.display()
        ));
        command.args(["-serial", "chardev:console", "-device", "virtio-serial-pci"]);
        command
            .arg("-chardev")
            .arg(listening("socket,id=agent,path=", &self.agent_socket()));
        command.arg("-device").arg(format!(
            "virtserialport,chardev=agent,name={}",
            lab_agent::PORT_NAME
        ));
        for (number, cable) in self.cables.iter().enumerate() {
            command.arg("-netdev").arg(format!(
                "stream,id=net{number},server=off,addr.type=unix,addr.path={}",
                cable.display()
            ));
            command.arg("-device").arg(format!(
                "virtio-net-pci,netdev=net{number},mac={}",
                template_mac(number)
            ));
        }
        for (id, disk, read_only) in [
            ("tools", &self.tools_disk, true),
            ("data", &self.data_disk, false),
        ] {
            let read_only = if read_only { "on" } else { "off" };
            command.arg("-drive").arg(format!(
                "file={},format=raw,if=none,id={id},readonly={read_only},discard=unmap",
                disk.display()
            ));
            command
                .arg("-device")
                .arg(format!("virtio-blk-pci,drive={id}"));
        }
        command.args(["-device", "virtio-rng-pci"]);
        if !self.memory_shared {
            command.args(["-incoming", "defer"]);
        }
        command
    }
}

fn listening(prefix: &str, path: &Path) -> String {
    format!("{prefix}{},server=on,wait=off", path.display())
}

fn template_mac(card: usize) -> String {
    format!("52:54:00:60:0{card}:00")
}
