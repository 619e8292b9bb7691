//! Damaged, cut, shrinking and full: an error that names the image and the remedy.

use std::fs;
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::VolatileSlice;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

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
        ground::skip("no right to mount a small tmpfs");
    }
}
