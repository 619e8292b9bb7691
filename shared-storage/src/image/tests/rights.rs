//! Who may touch an image: its lock, its gate, and the datastore around it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;
use vm_memory::VolatileSlice;

use super::*;
use crate::gate::{Gate, Shut};

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
            ground::skip("qemu-img is not installed");
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
