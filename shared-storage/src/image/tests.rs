use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::VolatileSlice;

use super::*;
use crate::gate::{Gate, Shut};

const DISK_BYTES: u64 = 2 << 20;

fn place() -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("disk");
    (directory, path)
}

fn read(disk: &Disk, at: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0xee; bytes];
    disk.read_at(at, &[VolatileSlice::from(&mut data[..])])
        .unwrap();
    data
}

fn write(disk: &Disk, at: u64, data: &[u8]) -> Result<(), DiskError> {
    let mut data = data.to_vec();
    disk.write_at(at, &[VolatileSlice::from(&mut data[..])])
}

fn open(path: &Path, format: Format) -> Result<Disk, ImageError> {
    Disk::open(DiskOptions::new(path, format))
}

/// Run qemu-img; `None` (said loudly) where it is not installed.
fn qemu_img(arguments: &[&str]) -> Option<String> {
    let Ok(output) = Command::new("qemu-img").args(arguments).output() else {
        println!("SKIPPED: qemu-img is not installed");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "qemu-img {arguments:?}: {text} {errors}"
    );
    Some(text)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Both checkers agree that a qcow2 image has neither errors nor leaks.
fn assert_flawless(path: &Path) {
    let report = check(None, path, Format::Qcow2).unwrap();
    assert_eq!((report.errors, report.leaks), (0, 0), "{report:?}");
    qemu_img(&["check", "-q", text(path)]);
}

fn go_on(_: CopyProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, usize, u8),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Flush,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let sector = || 0..DISK_BYTES / 512;
    prop_oneof![
        6 => (sector(), 1usize..300, 1u8..).prop_map(|(at, n, value)| Step::Write(at, n, value)),
        2 => (sector(), 1u64..600, any::<bool>()).prop_map(|(at, n, unmap)| Step::Zero(at, n, unmap)),
        1 => (sector(), 1u64..600).prop_map(|(at, n)| Step::Discard(at, n)),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ]
}

/// Do `steps` to a disk and to a plain array, and compare.
fn follow(options: &DiskOptions, model: &mut [u8], steps: &[Step]) {
    let mut disk = Disk::open(options.clone()).unwrap();
    let clip = |at: u64, sectors: u64| sectors.min(DISK_BYTES / 512 - at) * 512;
    for step in steps {
        match *step {
            Step::Write(at, sectors, value) => {
                let bytes = clip(at, sectors as u64) as usize;
                let at = at * 512;
                let data: Vec<u8> = (0..bytes)
                    .map(|index| value ^ (index / 512) as u8)
                    .collect();
                write(&disk, at, &data).unwrap();
                model[at as usize..at as usize + bytes].copy_from_slice(&data);
            }
            Step::Zero(at, sectors, unmap) => {
                let bytes = clip(at, sectors);
                let at = at * 512;
                disk.write_zeroes(at, bytes, unmap).unwrap();
                model[at as usize..(at + bytes) as usize].fill(0);
            }
            Step::Discard(at, sectors) => {
                let bytes = clip(at, sectors);
                let at = at * 512;
                disk.discard(at, bytes).unwrap();
                // Anything may be there now; take it as it is.
                let now = read(&disk, at, bytes as usize);
                model[at as usize..(at + bytes) as usize].copy_from_slice(&now);
            }
            Step::Flush => disk.flush().unwrap(),
            Step::Reopen => {
                drop(disk);
                disk = Disk::open(options.clone()).unwrap();
            }
        }
    }
    assert!(
        read(&disk, 0, DISK_BYTES as usize) == model,
        "the disk is not what was written"
    );
    disk.flush().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_disk_holds_what_was_written(
        steps in prop::collection::vec(step(), 1..40),
        qcow2 in any::<bool>(),
        direct in any::<bool>(),
    ) {
        let (_directory, path) = place();
        let format = if qcow2 { Format::Qcow2 } else { Format::Raw };
        create(None, &path, format, DISK_BYTES).unwrap();
        let mut model = vec![0; DISK_BYTES as usize];
        follow(&DiskOptions { direct, ..DiskOptions::new(&path, format) }, &mut model, &steps);
        if format == Format::Qcow2 {
            assert_flawless(&path);
        }
        prop_assert!(fs::metadata(&path).unwrap().len() > 0);
    }

    #[test]
    fn an_overlay_leaves_its_base_alone(
        below in prop::collection::vec(step(), 1..12),
        above in prop::collection::vec(step(), 1..24),
        qcow2 in any::<bool>(),
    ) {
        let directory = TempDir::new().unwrap();
        fs::create_dir_all(directory.path().join("images/base")).unwrap();
        fs::create_dir_all(directory.path().join("guests/web")).unwrap();
        let base = directory.path().join("images/base/disk");
        let path = directory.path().join("guests/web/disk");
        let format = if qcow2 { Format::Qcow2 } else { Format::Raw };
        create(None, &base, format, DISK_BYTES).unwrap();
        let mut model = vec![0; DISK_BYTES as usize];
        follow(&DiskOptions::new(&base, format), &mut model, &below);
        let before = fs::read(&base).unwrap();
        let root = Some(directory.path());
        create_overlay(root, &path, &base, format).unwrap();
        prop_assert_eq!(
            info(root, &path).unwrap().backing.unwrap().0,
            "../../images/base/disk"
        );
        let options = DiskOptions {
            root: root.map(Path::to_path_buf),
            ..DiskOptions::new(&path, Format::Qcow2)
        };
        follow(&options, &mut model, &above);
        assert_flawless(&path);
        prop_assert!(fs::read(&base).unwrap() == before, "the base changed");
        // QEMU sees the same disk.
        let flat = directory.path().join("flat");
        if qemu_img(&["convert", "-O", "raw", text(&path), text(&flat)]).is_some() {
            prop_assert!(fs::read(&flat).unwrap() == model, "QEMU sees another disk");
        }
        // And so does a copy in either format.
        for format in [Format::Raw, Format::Qcow2] {
            let copied = directory.path().join(format.name());
            copy(options.clone(), &directory.path().join(format.name()), format, go_on).unwrap();
            let disk = open(&copied, format).unwrap();
            prop_assert!(read(&disk, 0, DISK_BYTES as usize) == model);
        }
        assert_flawless(&directory.path().join("qcow2"));
    }

    #[test]
    fn damaged_headers_are_refused_or_harmless(
        damage in prop::collection::vec((0usize..640, any::<u8>()), 1..6),
        cut in prop::option::of(0u64..300_000),
    ) {
        let (_directory, path) = place();
        create(None, &path, Format::Qcow2, DISK_BYTES).unwrap();
        let disk = open(&path, Format::Qcow2).unwrap();
        write(&disk, 0, &[7; 4096]).unwrap();
        drop(disk);
        let mut bytes = fs::read(&path).unwrap();
        for (at, value) in damage {
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut as usize);
        }
        fs::write(&path, bytes).unwrap();
        let _ = check(None, &path, Format::Qcow2);
        let _ = info(None, &path);
        if let Ok(disk) = open(&path, Format::Qcow2)
            && disk.bytes() >= 4096
        {
            let mut data = [0; 4096];
            let _ = disk.read_at(0, &[VolatileSlice::from(&mut data[..])]);
            let _ = write(&disk, 0, &data);
            let _ = disk.flush();
        }
    }
}

#[test]
fn several_threads_share_a_disk() {
    const THREADS: u64 = 4;
    const BLOCK: u64 = 4096;
    for format in [Format::Raw, Format::Qcow2] {
        let (directory, path) = place();
        create(None, &path, format, DISK_BYTES).unwrap();
        let disk = Arc::new(open(&path, format).unwrap());
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let disk = disk.clone();
                std::thread::spawn(move || {
                    // Neighbouring blocks belong to different threads; clusters are shared.
                    for round in 1..6u8 {
                        for block in (thread..DISK_BYTES / BLOCK).step_by(THREADS as usize) {
                            let value = round ^ (block as u8);
                            write(&disk, block * BLOCK, &[value; BLOCK as usize]).unwrap();
                            assert_eq!(read(&disk, block * BLOCK, 512), [value; 512]);
                            if block % 37 == thread {
                                disk.write_zeroes(block * BLOCK, BLOCK, round % 2 == 0)
                                    .unwrap();
                                assert_eq!(read(&disk, block * BLOCK, 512), [0; 512]);
                            }
                            if block % 101 == 0 {
                                disk.flush().unwrap();
                            }
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let now = read(&disk, 0, DISK_BYTES as usize);
        drop(disk);
        let again = open(&path, format).unwrap();
        assert!(read(&again, 0, DISK_BYTES as usize) == now);
        drop(again);
        if format == Format::Qcow2 {
            assert_flawless(&path);
            let flat = directory.path().join("flat");
            if qemu_img(&["convert", "-O", "raw", text(&path), text(&flat)]).is_some() {
                assert!(fs::read(&flat).unwrap() == now);
            }
        }
    }
}

#[test]
fn images_of_qemu_are_understood() {
    let (directory, raw) = place();
    let mut content = vec![0; DISK_BYTES as usize];
    for (at, byte) in content
        .iter_mut()
        .enumerate()
        .filter(|(at, _)| at / 65536 % 3 == 1)
    {
        *byte = (at / 100) as u8;
    }
    fs::write(&raw, &content).unwrap();
    let image = directory.path().join("image");
    for options in [
        "cluster_size=512",
        "cluster_size=2M",
        "compat=0.10",
        "refcount_bits=1",
        "refcount_bits=64",
        "lazy_refcounts=on",
    ] {
        for extra in [&[][..], &["-c"]] {
            let mut arguments = vec!["convert", "-O", "qcow2", "-o", options];
            arguments.extend_from_slice(extra);
            arguments.extend_from_slice(&[text(&raw), text(&image)]);
            if qemu_img(&arguments).is_none() {
                return;
            }
            let disk = open(&image, Format::Qcow2).unwrap();
            assert!(
                read(&disk, 0, content.len()) == content,
                "{options} {extra:?}"
            );
            write(&disk, 512, &[9; 3000 / 512 * 512]).unwrap();
            disk.write_zeroes(1 << 20, 100 << 10, true).unwrap();
            disk.discard(0, 512).unwrap();
            disk.flush().unwrap();
            drop(disk);
            assert_flawless(&image);
        }
    }
}

#[test]
fn a_damaged_image_is_found_out() {
    let (_directory, path) = place();
    create(None, &path, Format::Qcow2, DISK_BYTES).unwrap();
    let disk = open(&path, Format::Qcow2).unwrap();
    write(&disk, 0, &vec![1; 200 << 10]).unwrap();
    drop(disk);
    let report = check(None, &path, Format::Qcow2).unwrap();
    assert_eq!((report.data_clusters, report.is_sound()), (4, true));
    let mut bytes = fs::read(&path).unwrap();
    let header = info(None, &path).unwrap();
    assert_eq!(header.cluster_bytes, Some(65536));
    // The refcount block is the third cluster: count one cluster too often, another not at all.
    bytes[2 * 65536 + 1] = 2;
    bytes[2 * 65536 + 3] = 0;
    fs::write(&path, &bytes).unwrap();
    let report = check(None, &path, Format::Qcow2).unwrap();
    assert_eq!((report.leaks, report.errors), (1, 1), "{report:?}");
}

#[test]
fn one_writer_or_many_readers() {
    let (_directory, path) = place();
    for format in [Format::Raw, Format::Qcow2] {
        let path = path.with_extension(format.name());
        create(None, &path, format, DISK_BYTES).unwrap();
        let readonly = DiskOptions {
            readonly: true,
            ..DiskOptions::new(&path, format)
        };
        let writer = open(&path, format).unwrap();
        assert!(matches!(open(&path, format), Err(ImageError::Locked(_))));
        assert!(matches!(
            Disk::open(readonly.clone()),
            Err(ImageError::Locked(_))
        ));
        drop(writer);
        let readers = [
            Disk::open(readonly.clone()).unwrap(),
            Disk::open(readonly).unwrap(),
        ];
        assert!(matches!(open(&path, format), Err(ImageError::Locked(_))));
        assert!(write(&readers[0], 0, &[1; 512]).is_err());
        // A base in use read-only cannot be written, nor a written one be a base.
        let overlay = path.with_extension(format!("{}-overlay", format.name()));
        create_overlay(None, &overlay, &path, format).unwrap();
        drop(readers);
        let above = open(&overlay, Format::Qcow2).unwrap();
        assert!(matches!(open(&path, format), Err(ImageError::Locked(_))));
        drop(above);
        let below = open(&path, format).unwrap();
        assert!(matches!(open(&overlay, Format::Qcow2), Err(ImageError::Locked(at)) if at == path));
        drop(below);
    }
}

#[test]
fn a_disk_is_handed_over() {
    let (_directory, path) = place();
    for format in [Format::Raw, Format::Qcow2] {
        let path = path.with_extension(format.name());
        create(None, &path, format, DISK_BYTES).unwrap();
        let source = open(&path, format).unwrap();
        let deferred = DiskOptions {
            deferred: true,
            ..DiskOptions::new(&path, format)
        };
        let target = Disk::open(deferred).unwrap();
        assert_eq!(target.bytes(), DISK_BYTES);
        assert!(matches!(target.acquire(), Err(ImageError::Locked(_))));
        write(&source, 4096, &[5; 512]).unwrap();
        assert!(write(&target, 0, &[1; 512]).is_err(), "not held");
        source.release().unwrap();
        assert!(write(&source, 0, &[1; 512]).is_err(), "let go");
        target.acquire().unwrap();
        assert_eq!(read(&target, 4096, 512), [5; 512]);
        assert!(matches!(source.acquire(), Err(ImageError::Locked(_))));
        write(&target, 1 << 20, &[6; 512]).unwrap();
        target.release().unwrap();
        source.acquire().unwrap();
        source.acquire().unwrap();
        assert_eq!(read(&source, 1 << 20, 512), [6; 512]);
    }
}

/// A gate that a test opens and shuts.
#[derive(Debug, Default)]
struct TestGate(AtomicBool);

impl Gate for TestGate {
    fn pass(&self) -> Result<(), Shut> {
        if self.0.load(Ordering::SeqCst) {
            Err(Shut)
        } else {
            Ok(())
        }
    }
}

#[test]
fn no_byte_passes_a_shut_gate() {
    for format in [Format::Raw, Format::Qcow2] {
        let (_directory, path) = place();
        create(None, &path, format, DISK_BYTES).unwrap();
        let gate = Arc::new(TestGate::default());
        let disk = Disk::open(DiskOptions {
            gate: gate.clone(),
            ..DiskOptions::new(&path, format)
        })
        .unwrap();
        write(&disk, 0, &[1; 512]).unwrap();
        disk.flush().unwrap();
        let before = fs::read(&path).unwrap();
        gate.0.store(true, Ordering::SeqCst);
        assert!(matches!(
            write(&disk, 0, &[2; 512]),
            Err(DiskError::Shut(_))
        ));
        assert!(matches!(
            write(&disk, 1 << 20, &[2; 512]),
            Err(DiskError::Shut(_))
        ));
        assert!(matches!(disk.flush(), Err(DiskError::Shut(_))));
        let mut data = [0; 512];
        let refused = disk.read_at(0, &[VolatileSlice::from(&mut data[..])]);
        assert!(matches!(refused, Err(DiskError::Shut(_))));
        assert!(fs::read(&path).unwrap() == before);
        gate.0.store(false, Ordering::SeqCst);
        write(&disk, 1 << 20, &[2; 512]).unwrap();
        disk.flush().unwrap();
        assert_eq!(read(&disk, 1 << 20, 512), [2; 512]);
        // Dropped behind a shut gate: nothing is written any more.
        write(&disk, 3 << 19, &[3; 512]).unwrap();
        gate.0.store(true, Ordering::SeqCst);
        let before = fs::read(&path).unwrap();
        drop(disk);
        assert!(fs::read(&path).unwrap() == before);
        if format == Format::Qcow2 {
            assert!(check(None, &path, format).unwrap().is_sound());
        }
    }
}

#[test]
fn nothing_outside_the_datastore_is_opened() {
    let directory = TempDir::new().unwrap();
    let root = directory.path().join("store");
    fs::create_dir_all(root.join("guests/web")).unwrap();
    let outside = directory.path().join("secret");
    create(None, &outside, Format::Raw, DISK_BYTES).unwrap();
    let options = |path: &Path, format| DiskOptions {
        root: Some(root.clone()),
        ..DiskOptions::new(path, format)
    };
    let escapes = |result: Result<Disk, ImageError>| {
        assert!(
            matches!(result, Err(ImageError::Escapes { .. })),
            "{result:?}"
        );
    };
    escapes(Disk::open(options(&outside, Format::Raw)));
    escapes(Disk::open(options(
        &root.join("guests/../../secret"),
        Format::Raw,
    )));
    std::os::unix::fs::symlink("../../../secret", root.join("guests/web/link")).unwrap();
    escapes(Disk::open(options(
        &root.join("guests/web/link"),
        Format::Raw,
    )));
    std::os::unix::fs::symlink(&outside, root.join("guests/web/absolute")).unwrap();
    escapes(Disk::open(options(
        &root.join("guests/web/absolute"),
        Format::Raw,
    )));
    // By way of a backing file, relative, absolute or through the symlink.
    for name in ["../../../secret", text(&outside), "link"] {
        let path = root.join("guests/web/disk.qcow2");
        let _ = fs::remove_file(&path);
        let made = Command::new("qemu-img")
            .args([
                "create",
                "-q",
                "-u",
                "-f",
                "qcow2",
                "-F",
                "raw",
                "-b",
                name,
                text(&path),
                "2M",
            ])
            .status();
        if !made.is_ok_and(|status| status.success()) {
            println!("SKIPPED: qemu-img is not installed");
            return;
        }
        escapes(Disk::open(options(&path, Format::Qcow2)));
        escapes(Disk::open(DiskOptions {
            deferred: true,
            ..options(&path, Format::Qcow2)
        }));
    }
    assert!(matches!(
        create(Some(&root), &root.join("../new"), Format::Raw, DISK_BYTES),
        Err(ImageError::Escapes { .. })
    ));
    // A chain without a format, and one that bites its own tail.
    let path = root.join("guests/web/loop.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-b",
        "loop.qcow2",
        "-F",
        "qcow2",
        text(&path),
        "2M",
    ]);
    let looped = Disk::open(DiskOptions {
        readonly: true,
        ..options(&path, Format::Qcow2)
    });
    assert!(
        matches!(looped, Err(ImageError::TooDeep { .. })),
        "{looped:?}"
    );
}

#[test]
fn errors_name_the_image_and_the_remedy() {
    let (directory, path) = place();
    let message = |result: Result<Disk, ImageError>| result.unwrap_err().to_string();
    assert!(message(open(&path, Format::Raw)).contains("does not exist"));
    assert!(message(open(directory.path(), Format::Raw)).contains("neither a regular file"));
    fs::write(&path, [0; 100]).unwrap();
    assert!(message(open(&path, Format::Raw)).contains("truncated"));
    fs::write(&path, [0; 10_000]).unwrap();
    assert!(message(open(&path, Format::Qcow2)).contains("is not a qcow2 image"));
    let image = path.with_extension("qcow2");
    create(None, &image, Format::Qcow2, DISK_BYTES).unwrap();
    assert!(matches!(
        create(None, &image, Format::Qcow2, DISK_BYTES),
        Err(ImageError::Exists(_))
    ));
    assert!(matches!(
        create(None, &path.join("x"), Format::Raw, 512),
        Err(ImageError::Io { .. })
    ));
    assert!(create(None, &path.with_extension("odd"), Format::Raw, 511).is_err());
    let whole = fs::read(&image).unwrap();
    fs::write(&image, &whole[..whole.len() / 2]).unwrap();
    assert!(message(open(&image, Format::Qcow2)).contains("truncated"));
    // Nothing half made is left behind.
    let names = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(names, 2);
}

#[test]
fn an_image_that_shrinks_under_us_is_an_error_not_zeroes() {
    let (_directory, path) = place();
    create(None, &path, Format::Raw, DISK_BYTES).unwrap();
    let disk = open(&path, Format::Raw).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(4096)
        .unwrap();
    let mut data = [0; 512];
    assert!(
        disk.read_at(8192, &[VolatileSlice::from(&mut data[..])])
            .is_err()
    );
}

#[test]
fn a_full_file_system_is_an_error() {
    // A tmpfs of its own, in a mount namespace of its own.
    let done = std::thread::spawn(|| {
        let directory = TempDir::new().unwrap();
        // SAFETY: only this thread moves into the new namespace.
        if unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) } != 0 {
            return None;
        }
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "none", text(directory.path())])
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            return None;
        }
        for format in [Format::Raw, Format::Qcow2] {
            let path = directory.path().join(format.name());
            create(None, &path, format, DISK_BYTES).unwrap();
            let disk = open(&path, format).unwrap();
            write(&disk, 0, &vec![1; 65536]).unwrap();
            let full = write(&disk, 65536, &vec![2; (DISK_BYTES - 65536) as usize]);
            assert!(matches!(full, Err(DiskError::Io(error)) if error.kind() == std::io::ErrorKind::StorageFull));
            assert_eq!(read(&disk, 0, 512), [1; 512]);
            disk.discard(65536, DISK_BYTES - 65536).unwrap();
            drop(disk);
            assert!(check(None, &path, format).unwrap().is_sound());
            fs::remove_file(&path).unwrap();
        }
        Command::new("umount").arg(directory.path()).status().ok()
    })
    .join()
    .unwrap();
    if done.is_none() {
        println!("SKIPPED: no right to mount a small tmpfs");
    }
}

#[test]
fn copies_are_sparse_report_and_can_be_broken_off() {
    let (directory, path) = place();
    create(None, &path, Format::Raw, 64 << 20).unwrap();
    let disk = open(&path, Format::Raw).unwrap();
    write(&disk, 40 << 20, &vec![3; 100 << 10]).unwrap();
    drop(disk);
    for format in [Format::Raw, Format::Qcow2] {
        let to = directory.path().join(format.name());
        let mut reports = Vec::new();
        let last = copy(
            DiskOptions::new(&path, Format::Raw),
            &to,
            format,
            |progress| {
                reports.push(progress.done_bytes);
                ControlFlow::Continue(())
            },
        )
        .unwrap();
        assert!(reports.is_sorted() && last.done_bytes == last.total_bytes);
        assert!(last.written_bytes <= 256 << 10, "{last:?}");
        let facts = info(None, &to).unwrap();
        assert_eq!((facts.format, facts.virtual_bytes), (format, 64 << 20));
        assert!(facts.allocated_bytes <= 1 << 20, "{facts:?}");
        qemu_img(&["compare", "-q", text(&path), text(&to)]);
    }
    let broken = directory.path().join("broken");
    let off = copy(
        DiskOptions::new(&path, Format::Raw),
        &broken,
        Format::Raw,
        |_| ControlFlow::Break(()),
    );
    assert!(off.is_err() && !broken.exists());
    let twin = directory.path().join("twin");
    duplicate(DiskOptions::new(&path, Format::Raw), &twin, go_on).unwrap();
    qemu_img(&["compare", "-q", text(&path), text(&twin)]);
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        4,
        "no leftovers"
    );
}

#[test]
fn disks_grow_and_shrink_only_when_asked() {
    for format in [Format::Raw, Format::Qcow2] {
        let (_directory, path) = place();
        create(None, &path, format, DISK_BYTES).unwrap();
        let disk = open(&path, format).unwrap();
        write(&disk, 0, &[1; 512]).unwrap();
        assert!(matches!(
            resize(DiskOptions::new(&path, format), 4 << 20, false),
            Err(ImageError::Locked(_))
        ));
        drop(disk);
        resize(DiskOptions::new(&path, format), 4 << 20, false).unwrap();
        let disk = open(&path, format).unwrap();
        assert_eq!(disk.bytes(), 4 << 20);
        write(&disk, (4 << 20) - 512, &[2; 512]).unwrap();
        drop(disk);
        assert!(resize(DiskOptions::new(&path, format), 1 << 20, false).is_err());
        resize(DiskOptions::new(&path, format), 1 << 20, true).unwrap();
        assert_eq!(info(None, &path).unwrap().virtual_bytes, 1 << 20);
        let disk = open(&path, format).unwrap();
        assert_eq!(read(&disk, 0, 512), [1; 512]);
        drop(disk);
        if format == Format::Qcow2 {
            assert_flawless(&path);
        }
    }
}
