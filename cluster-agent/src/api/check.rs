//! Whether a guest can be as somebody wants it: asked before it is made and before it changes.

use std::collections::BTreeMap;

use cluster_core::dependencies::{circle, circle_words};
use cluster_core::model::{Guest, GuestId};
use hyper::StatusCode;
use shared_storage::{Datastore, StoreError, fence};

use super::answer::Refused;
use crate::guest_file::{GRACE_MAX_S, GuestFile};

/// Check everything that can be checked without a host.
pub fn check(store: &Datastore, name: &str, file: &GuestFile) -> Result<(), Refused> {
    let bad = |why: String| Refused(StatusCode::BAD_REQUEST, why);
    let image_dir = store.image_dir(&file.image).map_err(|error| match error {
        StoreError::Missing(_) => bad(format!(
            "there is no image {}; `godwit images` lists them",
            file.image
        )),
        other => other.into(),
    })?;
    let spec = file
        .spec(name, &image_dir, None, |disk| disk.into())
        .map_err(bad)?;
    spec.validate().map_err(|error| bad(error.to_string()))?;
    if let Some(disk) = file.disks.iter().find(|disk| !fence::is_disk(&disk.name)) {
        return Err(bad(format!(
            "{:?} cannot be a disk of {name}: disks are files in its own directory that end in .raw, \
             .img or .qcow2; others would not be fenced when another host takes it over",
            disk.name
        )));
    }
    let limit = u64::from(file.cpus) * 1000;
    if file.reserve_mcpu > limit {
        return Err(bad(format!(
            "{name} has only {limit} thousandths of a core; reserve no more, or give it more \
             processors"
        )));
    }
    check_dependencies(store, name, file)
}

/// A grace that somebody asks for.
pub fn check_grace(grace_s: Option<u64>) -> Result<(), Refused> {
    match grace_s.filter(|grace_s| *grace_s > GRACE_MAX_S) {
        Some(too_long) => {
            let why = format!("{too_long} s of grace are too long: at most {GRACE_MAX_S} s");
            Err(Refused(StatusCode::BAD_REQUEST, why))
        }
        None => Ok(()),
    }
}

fn check_dependencies(store: &Datastore, name: &str, file: &GuestFile) -> Result<(), Refused> {
    if file.after.is_empty() {
        return Ok(());
    }
    let mut guests: BTreeMap<GuestId, Guest> = BTreeMap::new();
    for other in store.guests()? {
        // A damaged or just deleted one waits for nobody.
        if let Ok(read) = store.guest(&other).and_then(|dir| dir.spec::<GuestFile>()) {
            guests.insert(other, read.spec.model());
        }
    }
    let unknown = file.after.keys().find(|before| {
        let itself = before.as_str() == name;
        !itself && !guests.contains_key(*before)
    });
    if let Some(unknown) = unknown {
        let why = format!("there is no guest {unknown} to wait for; `godwit guests` lists them");
        return Err(Refused(StatusCode::BAD_REQUEST, why));
    }
    match circle(&guests, &name.to_owned(), &file.after) {
        Some(found) => Err(Refused(StatusCode::BAD_REQUEST, circle_words(&found))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use shared_storage::ClusterFile;

    use super::*;

    #[test]
    fn a_disk_that_no_takeover_would_fence_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = ClusterFile::new("test", storage_core::timing::Timing::default());
        let store = Datastore::create(dir.path(), &cluster).unwrap();
        let image = dir.path().join("images/tiny");
        std::fs::create_dir_all(&image).unwrap();
        std::fs::write(image.join("image.toml"), "kernel = 'vmlinux'").unwrap();
        let with_disk = |name: &str| {
            let text = format!(
                "desired = 'stopped'\nprotected = true\nmovable = true\nimage = 'tiny'\ncpus = 1\n\
                 memory_mib = 64\n[[disk]]\nname = '{name}'\nformat = 'raw'\n"
            );
            check(&store, "web1", &toml::from_str(&text).unwrap())
        };
        for name in ["disk0.raw", "swap.img", "data.qcow2"] {
            with_disk(name).unwrap();
        }
        for name in ["disk0.vmdk", "disk0", "../web2/disk0.raw"] {
            let Refused(status, why) = with_disk(name).unwrap_err();
            assert_eq!(status, StatusCode::BAD_REQUEST);
            assert!(why.contains("would not be fenced"), "{why}");
        }
    }
}
