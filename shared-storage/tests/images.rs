//! `godwit-store image`: what an operator can do with images, and what is refused.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use shared_storage::image::{Disk, DiskOptions, Format};
use tempfile::TempDir;
use vm_memory::VolatileSlice;

/// A datastore with an image `images/base/root.raw` of 8 MiB, of which 64 KiB are not zero, and
/// a guest `web1` whose disk rests on it.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            dir: TempDir::new().unwrap(),
        };
        place.done(&["init"]);
        place.done(&["drill", "prepare", "web1"]);
        fs::create_dir(place.path("images/base")).unwrap();
        place.done(&["image", "create", "images/base/root.raw", "8M"]);
        let disk = Disk::open(place.options("images/base/root.raw", Format::Raw)).unwrap();
        let mut data = vec![7; 64 << 10];
        disk.write_at(1 << 20, &[VolatileSlice::from(&mut data[..])])
            .unwrap();
        drop(disk);
        place.done(&[
            "image",
            "overlay",
            "images/base/root.raw",
            "guests/web1/disk0.qcow2",
        ]);
        place
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.dir.path().join(inside)
    }

    fn options(&self, inside: &str, format: Format) -> DiskOptions {
        DiskOptions::new(self.path(inside), format)
    }

    fn store(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_godwit-store"));
        command.arg("-d").arg(self.dir.path()).args(arguments);
        command.output().unwrap()
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = self.store(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.store(&[arguments, &["--json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The one line that refuses it.
    fn refused(&self, arguments: &[&str], code: i32) -> String {
        let output = self.store(arguments);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {output:?}"
        );
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(code == 2 || said.trim().lines().count() == 1, "{said}");
        said
    }

    fn names(&self, inside: &str) -> usize {
        fs::read_dir(self.path(inside)).unwrap().count()
    }
}

fn content(path: &Path, format: Format) -> Vec<u8> {
    let disk = Disk::open(DiskOptions::new(path, format)).unwrap();
    let mut data = vec![0; disk.bytes() as usize];
    disk.read_at(0, &[VolatileSlice::from(&mut data[..])])
        .unwrap();
    data
}

#[test]
fn an_overlay_shows_what_it_rests_on_and_takes_next_to_nothing() {
    let place = Place::new();
    let layers = place.json(&["image", "info", "guests/web1/disk0.qcow2"]);
    assert_eq!(layers[0]["format"], "qcow2");
    assert_eq!(layers[0]["virtual_bytes"], 8 << 20);
    assert!(layers[0]["allocated_bytes"].as_u64().unwrap() < 1 << 20);
    assert_eq!(layers[1]["format"], "raw");
    let said = place.done(&["image", "info", "guests/web1/disk0.qcow2"]);
    assert!(
        said.contains("rests on") && said.contains("8.0 MiB"),
        "{said}"
    );
    let said = place.done(&["image", "check", "guests/web1/disk0.qcow2"]);
    assert_eq!(said.matches("sound").count(), 2, "{said}");
}

#[test]
fn a_copy_says_how_far_it_is_and_leaves_zeroes_out() {
    let place = Place::new();
    let from = "guests/web1/disk0.qcow2";
    let copied = place.store(&["image", "copy", from, "images/base/flat.raw"]);
    assert!(copied.status.success(), "{copied:?}");
    let progress = String::from_utf8(copied.stderr).unwrap();
    assert!(
        progress.trim().ends_with("100 %, 64.0 KiB written"),
        "{progress}"
    );
    let said = String::from_utf8(copied.stdout).unwrap();
    assert!(said.contains("64.0 KiB of 8.0 MiB"), "{said}");
    let flat = content(&place.path("images/base/flat.raw"), Format::Raw);
    let original = content(&place.path("images/base/root.raw"), Format::Raw);
    assert!(flat == original, "the copy is another disk");
    place.done(&[
        "image",
        "clone",
        "images/base/flat.raw",
        "images/base/twin.raw",
    ]);
    let twin = content(&place.path("images/base/twin.raw"), Format::Raw);
    assert!(twin == original, "the clone is another disk");
    let quiet = place.store(&["image", "copy", from, "images/base/b.qcow2", "--json"]);
    assert!(quiet.stderr.is_empty(), "{quiet:?}");
}

#[test]
fn a_disk_grows_and_shrinks_only_by_force() {
    let place = Place::new();
    let disk = "guests/web1/disk0.qcow2";
    place.done(&["image", "resize", disk, "16M"]);
    assert_eq!(
        place.json(&["image", "info", disk])[0]["virtual_bytes"],
        16 << 20
    );
    let said = place.refused(&["image", "resize", disk, "1M"], 1);
    assert!(said.contains("shrinking loses data"), "{said}");
    place.done(&["image", "resize", disk, "4M", "--shrink"]);
    let base = place.refused(&["image", "resize", "images/base/root.raw", "16M"], 1);
    assert!(base.contains("change the copy"), "{base}");
}

#[test]
fn a_disk_is_found_under_the_epoch_of_its_last_takeover() {
    let place = Place::new();
    let (plain, fenced) = ("guests/web1/disk0.qcow2", "guests/web1/disk0.qcow2@7");
    fs::rename(place.path(plain), place.path(fenced)).unwrap();
    place.done(&["image", "resize", plain, "16M"]);
    assert_eq!(
        place.json(&["image", "info", fenced])[0]["virtual_bytes"],
        16 << 20
    );
}

#[test]
fn what_cannot_be_is_refused_in_one_line_and_leaves_nothing() {
    let place = Place::new();
    let before = place.names("images/base");
    let refused = |arguments: &[&str], why: &str| {
        let said = place.refused(&[&["image"], arguments].concat(), 1);
        assert!(said.contains(why), "{arguments:?}: {said}");
    };
    refused(&["info", "images/base/none.raw"], "there is no");
    refused(&["info", "images/base"], "end its name in");
    refused(&["info", "../outside.img"], "outside");
    refused(&["info", "/etc/passwd.img"], "outside");
    refused(&["check", "images/none/x.raw"], "No such file");
    refused(&["create", "images/base/root.raw", "8M"], "exists already");
    refused(&["create", "images/base/new.raw", "511"], "multiple of 512");
    refused(&["create", "images/base/new.vmdk", "8M"], "end its name in");
    refused(&["create", "images/none/new.raw", "8M"], "does not exist");
    refused(&["create", "../new.raw", "8M"], "outside");
    refused(
        &["overlay", "images/base/root.raw", "images/base/new.raw"],
        "an overlay is qcow2",
    );
    refused(
        &["clone", "images/base/root.raw", "images/base/new.qcow2"],
        "the format of its original",
    );
    refused(&["copy", "images/base/root.raw", "/tmp/new.raw"], "outside");
    place.refused(&["image", "create", "images/base/new.raw", "much"], 2);
    assert_eq!(place.names("images/base"), before);
}

#[test]
fn a_disk_in_use_is_left_alone() {
    let place = Place::new();
    let disk = "guests/web1/disk0.qcow2";
    let running = Disk::open(place.options(disk, Format::Qcow2)).unwrap();
    for verb in [
        &["image", "check", disk][..],
        &["image", "resize", disk, "16M"],
        &["image", "copy", disk, "images/base/copy.raw"],
    ] {
        let said = place.refused(verb, 1);
        assert!(said.contains("in use by another process"), "{said}");
    }
    drop(running);
    place.done(&["image", "check", disk]);
}

#[test]
fn damage_is_found_and_no_chain_leads_outside() {
    let place = Place::new();
    let disk = place.path("guests/web1/disk0.qcow2");
    // The first refcount block lies in the third cluster: the header's cluster, not counted.
    let file = fs::OpenOptions::new().write(true).open(&disk).unwrap();
    file.write_all_at(&[0, 0], 2 << 16).unwrap();
    let check = place.store(&["image", "check", "guests/web1/disk0.qcow2"]);
    assert_eq!(check.status.code(), Some(3), "{check:?}");
    let said = String::from_utf8(check.stdout).unwrap();
    assert!(
        said.starts_with("WRONG") && said.contains("counted 0 times"),
        "{said}"
    );
    file.set_len(1000).unwrap();
    let said = place.refused(&["image", "check", "guests/web1/disk0.qcow2"], 1);
    assert!(said.contains("truncated"), "{said}");

    let link = place.path("images/base/link.raw");
    std::os::unix::fs::symlink("/etc/hostname", link).unwrap();
    let said = place.refused(&["image", "info", "images/base/link.raw"], 1);
    assert!(said.contains("outside"), "{said}");
}
