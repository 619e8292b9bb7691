//! A disk holds what was written to it, in every format, and QEMU agrees.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

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
