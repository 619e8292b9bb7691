//! Makes a guest: its directory appears whole, with its disk, or not at all.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use cluster_core::model::Desired;
use hyper::StatusCode;
use shared_storage::image::{self, DiskOptions, Format};
use shared_storage::{Datastore, StoreError};
use vmm_core::mac::Mac;
use vmm_core::spec::DiskFormat;

use super::answer::Refused;
use super::check::check;
use super::views::{CreateGuest, DiskFrom};
use crate::guest_file::{GRACE_S, GuestDisk, GuestFile, ImageFile};

/// Make the guest; it is off.
pub fn create(store: &Datastore, wish: &CreateGuest) -> Result<(), Refused> {
    let bad = |why: String| Refused(StatusCode::BAD_REQUEST, why);
    let image_dir = store.image_dir(&wish.image).map_err(|error| match error {
        StoreError::Missing(_) => bad(format!(
            "there is no image {}; `godwit images` lists them",
            wish.image
        )),
        other => other.into(),
    })?;
    let image = ImageFile::read(&image_dir).map_err(bad)?;
    let disk = image.disk.as_ref().map(|source| {
        let overlay = wish.disk_from == DiskFrom::Overlay;
        let format = if overlay {
            DiskFormat::Qcow2
        } else {
            image.format
        };
        let name = if format == DiskFormat::Raw {
            "disk0.raw"
        } else {
            "disk0.qcow2"
        };
        (
            image_dir.join(source),
            GuestDisk {
                name: name.to_owned(),
                format,
            },
        )
    });
    let file = GuestFile {
        desired: Desired::Stopped,
        priority: wish.priority,
        protected: wish.protected,
        movable: true,
        automation: None,
        reserve_mcpu: wish.reserve_mcpu,
        grace_s: GRACE_S,
        stop_within_s: None,
        image: wish.image.clone(),
        cpus: wish.cpus,
        memory_mib: wish.memory_mib,
        cpu: wish.cpu,
        cmdline: wish.cmdline.clone(),
        after: wish.after.clone(),
        disks: disk.iter().map(|(_, disk)| disk.clone()).collect(),
        macs: vec![mac_of(&wish.name, 0)],
    };
    check(store, &wish.name, &file)?;
    let fill = |dir: &Path| match &disk {
        Some((source, disk)) => make_disk(
            store,
            source,
            image.format,
            &dir.join(&disk.name),
            wish.disk_from,
        ),
        None => Ok(()),
    };
    store
        .create_guest(&wish.name, &file, fill)
        .map_err(|error| match error {
            StoreError::Exists(_) => taken(&wish.name),
            other => other.into(),
        })?;
    Ok(())
}

/// The name is another guest's.
pub(super) fn taken(name: &str) -> Refused {
    Refused(
        StatusCode::CONFLICT,
        format!("there is a guest {name} already; choose another name"),
    )
}

/// The disk format as the datastore calls it.
pub(super) fn store_format(format: DiskFormat) -> Format {
    match format {
        DiskFormat::Raw => Format::Raw,
        DiskFormat::Qcow2 => Format::Qcow2,
    }
}

fn make_disk(
    store: &Datastore,
    source: &Path,
    format: DiskFormat,
    target: &Path,
    from: DiskFrom,
) -> Result<(), StoreError> {
    let format = store_format(format);
    let root = Some(store.root());
    let made = match from {
        DiskFrom::Overlay => image::create_overlay(root, target, source, format),
        DiskFrom::Copy => {
            let options = DiskOptions {
                root: root.map(Path::to_owned),
                ..DiskOptions::new(source, format)
            };
            image::duplicate(options, target, |_| ControlFlow::Continue(())).map(|_| ())
        }
    };
    made.map_err(|error| StoreError::io("make the disk", target)(io::Error::other(error)))
}

/// The same name gives the same address, so that a guest that is made again keeps it.
pub(super) fn mac_of(guest: &str, card: usize) -> Mac {
    let of_guest = crc32c::crc32c(guest.as_bytes());
    let of_card = match card {
        0 => of_guest,
        // No guest's name has a space.
        _ => crc32c::crc32c_append(of_guest, format!(" {card}").as_bytes()),
    };
    Mac::local(of_card.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_addresses_are_its_own_and_stay() {
        assert_eq!(mac_of("web1", 0), mac_of("web1", 0));
        assert_ne!(mac_of("web1", 0), mac_of("web1", 1));
        assert_ne!(mac_of("web1", 0), mac_of("web2", 0));
    }
}
