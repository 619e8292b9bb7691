//! The `vmm` command as people meet it: what it refuses and how, and how guests end.

mod little;

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output, Stdio};

use little::{cannot_run_guests, kernel, out, vmm};

#[test]
fn what_cannot_be_is_refused_in_one_line_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("kernel"), kernel(&[0xf4])).unwrap();
    std::fs::write(path("text"), "no kernel at all").unwrap();
    std::fs::write(path("short.qcow2"), "QFI\u{fb}").unwrap();
    std::fs::write(path("cut"), &kernel(&[0xf4; 64])[..300]).unwrap();
    std::fs::write(path("large"), large_kernel()).unwrap();
    std::fs::write(path("empty"), "").unwrap();
    std::fs::write(path("odd"), [0; 1000]).unwrap();
    std::fs::write(path("rubbish"), [0xff; 100]).unwrap();
    std::fs::write(path("disk"), [0; 4096]).unwrap();
    let held = std::fs::File::open(path("disk")).unwrap();
    lock(&held);
    std::fs::write(
        path("unknown.toml"),
        "name = 'a'\nkernel = 'kernel'\ncolour = 1\n",
    )
    .unwrap();
    let needs_kvm = [
        ("run --kernel absent", "absent"),
        ("run --kernel text", "a bzImage (vmlinuz) or an ELF image"),
        (
            "run --kernel cut",
            "cut is not a kernel that can be booted: it is truncated",
        ),
        ("run --kernel .", "name a file"),
        ("run --kernel large --memory 16", "give the guest more"),
        ("run --kernel kernel --disk path=odd", "odd is truncated"),
        (
            "run --kernel kernel --disk path=empty",
            "empty is truncated",
        ),
        (
            "run --kernel kernel --disk path=disk",
            "disk is in use by another",
        ),
        (
            "run --kernel kernel --disk path=disk,format=qcow2",
            "not a qcow2 image",
        ),
        (
            "run --kernel kernel --net tap=lo,mac=52:54:00:00:00:01",
            "lo is not a tap",
        ),
        ("run --kernel kernel --initramfs absent", "initramfs absent"),
        (
            "run --kernel kernel --disk path=absent",
            "image absent does not exist",
        ),
        (
            "run --kernel kernel --disk path=short.qcow2,format=qcow2",
            "short.qcow2",
        ),
        (
            "run --kernel kernel --net tap=absent,mac=52:54:00:00:00:01",
            "ip tuntap add dev absent",
        ),
        (
            "run --kernel kernel --net tap=fd=99,mac=52:54:00:00:00:01",
            "names no descriptor",
        ),
        ("run --kernel kernel --memory 60000G", "ask for less"),
        ("run --kernel kernel --memory 1000000G", "MiB"),
    ];
    let anywhere = [
        ("run", "give a spec file, or at least --kernel"),
        ("run absent.toml", "absent.toml: No such file"),
        ("run unknown.toml", "line 3: unknown field `colour`"),
        ("run --kernel kernel --cpus 65", "1 to 64"),
        (
            "run --kernel kernel --memory 127 --hugepages",
            "even number",
        ),
        (
            "run --kernel kernel --disk=path=a --disk=path=a",
            "a is there twice",
        ),
        ("run rubbish", "a kernel goes with --kernel"),
        (
            "run --kernel kernel --net=tap=a,mac=52:54:00:00:00:01 --net=tap=a,mac=52:54:00:00:00:02",
            "the tap a is there twice",
        ),
        (
            "run --kernel kernel --net=tap=a,mac=52:54:00:00:00:01 --net=tap=b,mac=52:54:00:00:00:01",
            "52:54:00:00:00:01 is there twice",
        ),
        (
            "run --kernel kernel --api-socket /absent/x",
            "choose another path",
        ),
        (
            "run --kernel kernel --console file=/absent/x",
            "choose a path",
        ),
        ("ctl --api-socket absent info", "is its VMM running?"),
    ];
    let mut cases = anywhere.to_vec();
    if !cannot_run_guests() {
        cases.extend(needs_kvm);
    }
    let before = std::fs::read_dir(dir.path()).unwrap().count();
    for (line, part) in cases {
        let arguments: Vec<&str> = line.split(' ').collect();
        let output = vmm(dir.path(), &arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{line}: {said}");
        assert!(said.contains(part), "{line}: {said}");
        assert_eq!(said.lines().count(), 1, "{line}: {said}");
    }
    // Nor is anything left where the guest's doors would have been.
    let doors = ["--console", "file=log", "--api-socket", "api"];
    let output = vmm(
        dir.path(),
        &[&["run", "--kernel", "absent"][..], &doors].concat(),
    );
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before);
    // Sockets that a killed VMM left are there afterwards, as dead as before.
    for name in ["dead", "dead-api"] {
        drop(UnixListener::bind(dir.path().join(name)).unwrap());
    }
    let doors = "run --kernel absent --console socket=dead --api-socket dead-api";
    let output = vmm(dir.path(), &doors.split(' ').collect::<Vec<_>>());
    assert_eq!(output.status.code(), Some(1));
    for name in ["dead", "dead-api"] {
        let refused = UnixStream::connect(dir.path().join(name)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{name}");
    }
}

/// A kernel that says it fills 32 MiB.
fn large_kernel() -> Vec<u8> {
    let mut image = kernel(&[0xf4]);
    let memory_bytes_at = 64 + 40;
    image[memory_bytes_at..memory_bytes_at + 8].copy_from_slice(&(32u64 << 20).to_le_bytes());
    image
}

/// As the VMM of another guest holds an image: by a lock of the open file.
fn lock(file: &std::fs::File) {
    let whole = libc::flock {
        l_type: libc::F_RDLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the kernel reads the structure, which outlives the call.
    let taken = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const whole) };
    assert_eq!(taken, 0);
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [
        ["run", "web1.toml", "--kernel", "kernel"],
        ["run", "--kernel", "kernel", "--frobnicate"],
        ["run", "--kernel", "kernel", "--disk=path=a,path=b"],
    ] {
        let output = vmm(dir.path(), &arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
    }
}

#[test]
fn every_end_has_its_code() {
    if cannot_run_guests() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Loads an empty interrupt table, then traps: nothing is left to take the fault.
    let crash = [&[0x0f, 0x01, 0x1d, 0, 0, 0x20, 0][..], &[0x0f, 0x0b]].concat();
    let halt = vec![0xf4];
    for (name, code, expected, part) in [
        ("off", out(0x600, 0x34), 0, ""),
        ("panic", out(0x505, 1), 10, "panicked"),
        ("crash", crash, 11, "triple fault"),
    ] {
        let program = [out(0x3f8, b'G'), code, halt.clone()].concat();
        std::fs::write(dir.path().join(name), kernel(&program)).unwrap();
        let output = vmm(dir.path(), &["run", "--kernel", name, "--memory", "16"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(expected), "{name}: {said}");
        assert_eq!(output.stdout, b"G", "{name}");
        assert!(said.contains(part), "{name}: {said}");
        assert_eq!(said.matches("has no lease").count(), 1, "{name}: {said}");
    }
}

/// An ELF image without a note for PVH is entered in 64-bit mode, with the boot parameters at hand.
#[test]
fn an_elf_image_without_a_note_starts_in_64_bit_mode() {
    if cannot_run_guests() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Where the kernel's header says "HdrS" (boot.rst); a byte of it goes out with each letter.
    let look = [0x8b, 0x86, 0x02, 0x02, 0, 0]; // mov eax, [rsi + 0x202]
    let tell = [0x66, 0xba, 0xf8, 0x03, 0xee]; // mov dx, 0x3f8; out dx, al
    let next = [0xc1, 0xe8, 8]; // shr eax, 8
    let header = [&look[..], &tell, &next, &tell, &next, &tell, &next, &tell].concat();
    // xor eax, eax; then a prefix without effect in 64-bit mode, inc eax in 32-bit mode; al += '6'.
    let mode = [&[0x31, 0xc0, 0x40, 0x90, 0x04, b'6'][..], &tell].concat();
    let program = [header, mode, out(0x600, 0x34), vec![0xf4]].concat();
    let mut image = kernel(&program);
    // One segment instead of two: the note is the second.
    image[56] = 1;
    std::fs::write(dir.path().join("kernel"), image).unwrap();
    let output = vmm(dir.path(), &["run", "--kernel", "kernel", "--memory", "16"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(output.stdout, b"HdrS6");
}

#[test]
fn a_guest_sees_no_more_of_the_processor_than_it_is_given() {
    if cannot_run_guests() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Writes CL of CPUID leaf 0x8000_0001 to the serial port; where ring 0 is emulated, leaves 1
    // and 7 are the host's whatever was set.
    let look = [0xb8, 1, 0, 0, 0x80, 0x0f, 0xa2];
    let tell = [0x66, 0xba, 0xf8, 0x03, 0x88, 0xc8, 0xee];
    let program = [&look[..], &tell, &out(0x600, 0x34), &[0xf4]].concat();
    std::fs::write(dir.path().join("kernel"), kernel(&program)).unwrap();
    let run = |features: &str| {
        let run = [
            "run",
            "--kernel",
            "kernel",
            "--memory",
            "16",
            "--cpu-features",
        ];
        vmm(dir.path(), &[&run[..], &[features]].concat())
    };
    let can = String::from_utf8(vmm(dir.path(), &["cpu-features"]).stdout).unwrap();
    let words: Vec<&str> = can.trim().split('-').collect();
    let extended = u32::from_str_radix(words[7], 16).unwrap();
    assert_eq!(run(can.trim()).stdout, [extended.to_le_bytes()[0]], "{can}");
    assert_eq!(run(&["0"; 10].join("-")).stdout, [0]);
    let wrong = run("avx2");
    assert_eq!(wrong.status.code(), Some(2));
    let said = String::from_utf8(wrong.stderr).unwrap();
    assert!(said.contains("`vmm cpu-features` prints"), "{said}");
}

/// In a mount namespace of its own, where nothing is under `/dev`.
#[test]
fn a_host_without_kvm_is_told() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("kernel"), kernel(&[0xf4])).unwrap();
    let without_devices = |line: &str| {
        let vmm = env!("CARGO_BIN_EXE_vmm");
        let line = format!("mount -t tmpfs none /dev || exit 99; exec {vmm} {line}");
        let unshare = Command::new("unshare")
            .args(["--map-root-user", "--mount", "sh", "-c", &line])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .output();
        // Its own failures, and that of the mount.
        let is_ours = |output: &Output| {
            output.status.code() != Some(99) && !output.stderr.starts_with(b"unshare")
        };
        unshare.ok().filter(is_ours)
    };
    let Some(refused) = without_devices("run --kernel kernel") else {
        ground::skip("no namespaces for this user");
        return;
    };
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("there is no /dev/kvm") && said.contains("modprobe"),
        "{said}"
    );
    let checked = without_devices("check").unwrap();
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(said.starts_with("BAD   there is no /dev/kvm"), "{said}");
}
