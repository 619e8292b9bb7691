//! Copies, clones and changes of size.

use std::fs;
use std::ops::ControlFlow;

use super::*;

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
