//! What the tests of images have in common, and the tests by what they are about.

mod content;
mod damage;
mod making;
mod rights;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use vm_memory::VolatileSlice;

use super::*;

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
        ground::skip("qemu-img is not installed");
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
