//! Makes a guest like another one: its settings, its own disks with the same content, its own
//! MAC addresses.
//!
//! Only of a guest that is off. Its lease is ours while its disks are read, so that nobody
//! starts it meanwhile, and goes back in whatever way the cloning ends.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{self, State};
use axum::routing::post;
use cluster_core::model::Desired;
use shared_storage::image::{self, DiskOptions, Made};
use shared_storage::{Datastore, GuestDir, StoreError};
use vmm_core::spec::DiskFormat;

use super::answer::{Answer, Refused, no_guest, said};
use super::check::check;
use super::create::{mac_of, store_format, taken};
use super::off::{hold, let_go};
use super::shared::Api;
use super::views::CloneGuest;
use crate::guest_file::{GuestDisk, GuestFile};
use crate::guests::Host;
use crate::http::wish::Wish;

/// What people and scripts may ask.
///
/// `POST /v1/guests/{guest}/clone` takes a [`CloneGuest`] and answers in words once it is made.
pub fn public() -> Router<Arc<Api>> {
    Router::new().route("/v1/guests/{guest}/clone", post(clone_guest))
}

async fn clone_guest(
    State(api): State<Arc<Api>>,
    extract::Path(guest): extract::Path<String>,
    Wish(wish): Wish<CloneGuest>,
) -> Answer {
    let host = api.host.clone();
    let began = Instant::now();
    let (from, to) = (guest.clone(), wish.name.clone());
    let how = api
        .on_store(move |store| clone(store, &host, &from, &to))
        .await?;
    api.nudge.nudge();
    let (name, took) = (&wish.name, began.elapsed().as_secs_f64());
    Ok(said(format!(
        "{name} is a clone of {guest} ({how}, {took:.1} s); start it with: godwit start {name}"
    )))
}

fn clone(store: &Datastore, host: &Host, from: &str, to: &str) -> Result<&'static str, Refused> {
    let dir = store.guest(from).map_err(|error| no_guest(from, error))?;
    if store.guest(to).is_ok() {
        return Err(taken(to));
    }
    let why = ", and its disks change while they would be copied";
    let lease = hold(host, &dir, why)?;
    // Now that nobody else changes it.
    let made = dir
        .spec::<GuestFile>()
        .map_err(Refused::from)
        .and_then(|read| copy(store, &dir, &read.spec, to));
    let_go(&lease, from);
    made
}

fn copy(
    store: &Datastore,
    dir: &GuestDir,
    source: &GuestFile,
    to: &str,
) -> Result<&'static str, Refused> {
    let cards = 0..source.macs.len();
    let file = GuestFile {
        desired: Desired::Stopped,
        stop_within_s: None,
        macs: cards.map(|card| mac_of(to, card)).collect(),
        ..source.clone()
    };
    check(store, to, &file)?;
    let mut shares = true;
    let fill = |fresh: &Path| {
        for disk in &source.disks {
            shares &= copy_disk(store, dir, disk, fresh)?;
        }
        Ok(())
    };
    store
        .create_guest(to, &file, fill)
        .map_err(|error| match error {
            StoreError::Exists(_) => taken(to),
            other => other.into(),
        })?;
    Ok(match (source.disks.is_empty(), shares) {
        (true, _) => "it has no disks",
        (false, true) => "its disks share their blocks with the original's until they are written",
        (false, false) => "its disks were copied",
    })
}

/// Returns whether the copy shares its blocks with the original.
fn copy_disk(
    store: &Datastore,
    dir: &GuestDir,
    disk: &GuestDisk,
    fresh: &Path,
) -> Result<bool, StoreError> {
    let (path, target) = (dir.disk(&disk.name)?, fresh.join(&disk.name));
    let root = Some(store.root());
    let fail =
        |error: image::ImageError| StoreError::io("copy the disk", &path)(io::Error::other(error));
    let overlay = disk.format == DiskFormat::Qcow2
        && image::info(root, &path).map_err(fail)?.backing.is_some();
    if overlay {
        // What it is based on is read only, and as far from the clone's directory as from
        // the original's.
        if image::reflink(root, &path, &target).map_err(fail)? {
            return Ok(true);
        }
        let copied = std::fs::copy(&path, &target).and_then(|_| File::open(&target)?.sync_all());
        return copied
            .map(|()| false)
            .map_err(StoreError::io("copy the disk", &path));
    }
    let options = DiskOptions {
        root: root.map(Path::to_owned),
        ..DiskOptions::new(&path, store_format(disk.format))
    };
    let made = image::duplicate(options, &target, |_| ControlFlow::Continue(())).map_err(fail)?;
    Ok(made == Made::Reflink)
}
