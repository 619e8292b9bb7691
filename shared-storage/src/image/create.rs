//! New images: empty, on top of a base, or as a clone of another; and changing their size.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::format::PreallocateMode;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatCreateBuilder};
use rustix::io::Errno;

use super::confine::{Access, open_file};
use super::disk::{Disk, DiskOptions, SECTOR_BYTES};
use super::error::ImageError;
use super::file::{Guard, GuardedFile};
use super::format::Format;
use super::place::NewImage;
use crate::gate::AlwaysOpen;

/// Largest disk that can be made; keeps every table within its limits.
pub const MAX_DISK_BYTES: u64 = 64 << 40;

/// Make an empty image of `bytes`, all zeroes and without space taken. Fails if `path` exists;
/// on error nothing is left behind.
pub fn create(
    root: Option<&Path>,
    path: &Path,
    format: Format,
    bytes: u64,
) -> Result<(), ImageError> {
    check_bytes(path, bytes)?;
    let new = NewImage::begin(root, path)?;
    write_empty(&new, format, bytes, None)?;
    new.show()
}

/// Make a qcow2 image on top of `base`, which is not changed and must not be from now on (an
/// instant clone). Both must lie inside `root` if there is one. The image refers to its base by
/// a relative path, so that the datastore may be mounted anywhere.
pub fn create_overlay(
    root: Option<&Path>,
    path: &Path,
    base: &Path,
    base_format: Format,
) -> Result<(), ImageError> {
    let options = DiskOptions {
        readonly: true,
        root: root.map(Path::to_path_buf),
        ..DiskOptions::new(base, base_format)
    };
    let bytes = Disk::open(options)?.bytes();
    let name = relative_name(path, base)?;
    let new = NewImage::begin(root, path)?;
    write_empty(&new, Format::Qcow2, bytes, Some((name, base_format)))?;
    new.show()
}

/// Make `path` share its blocks with `source`, where the file system can (Btrfs, XFS, NFSv4.2 on
/// top of them). Returns `false`, with nothing left behind, where it cannot.
pub fn reflink(root: Option<&Path>, source: &Path, path: &Path) -> Result<bool, ImageError> {
    let access = Access {
        write: false,
        direct: false,
    };
    let from = open_file(root, source, access)?;
    let new = NewImage::begin(root, path)?;
    match rustix::fs::ioctl_ficlone(new.file(), &from) {
        Ok(()) => new.show().map(|()| true),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::INVAL | Errno::NOSYS) => {
            Ok(false)
        }
        Err(error) => Err(ImageError::from_io("clone", source, error.into())),
    }
}

/// Change the size that the guest sees. Shrinking loses what lies past the end and has to be
/// asked for. The image must not be in use.
pub fn resize(options: DiskOptions, bytes: u64, may_shrink: bool) -> Result<(), ImageError> {
    check_bytes(&options.path, bytes)?;
    let path = options.path.clone();
    let disk = Disk::open(DiskOptions {
        readonly: false,
        deferred: false,
        ..options
    })?;
    if bytes < disk.bytes() && !may_shrink {
        return Err(ImageError::Unsupported {
            path,
            why: format!(
                "{bytes} bytes are less than its {}; shrinking loses data and must be forced",
                disk.bytes()
            ),
        });
    }
    disk.resize(bytes)
        .map_err(|error| ImageError::from_io("resize", &path, error))
}

fn check_bytes(path: &Path, bytes: u64) -> Result<(), ImageError> {
    if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) || bytes > MAX_DISK_BYTES {
        let why = format!(
            "a disk has a multiple of {SECTOR_BYTES} and at most {MAX_DISK_BYTES} bytes, not {bytes}"
        );
        return Err(ImageError::Unsupported {
            path: path.into(),
            why,
        });
    }
    Ok(())
}

/// Write what an empty image consists of into a new file.
pub(super) fn write_empty(
    new: &NewImage,
    format: Format,
    bytes: u64,
    base: Option<(String, Format)>,
) -> Result<(), ImageError> {
    let fail = |error| ImageError::from_io("write", new.path(), error);
    match format {
        Format::Raw => new.file().set_len(bytes).map_err(fail),
        Format::Qcow2 => write_qcow2(new, bytes, base).map_err(fail),
    }
}

fn write_qcow2(new: &NewImage, bytes: u64, base: Option<(String, Format)>) -> io::Result<()> {
    let guard = Arc::new(Guard::new(Arc::new(AlwaysOpen)));
    let file = GuardedFile::new(
        new.file().try_clone()?,
        new.path().to_path_buf(),
        false,
        guard,
    )?;
    let builder = Qcow2::<GuardedFile, FormatAccess<GuardedFile>>::create_builder(file)
        .size(bytes)
        .preallocate(PreallocateMode::None);
    match base {
        None => builder.create(),
        Some((name, format)) => builder.backing(name, format.name().to_owned()).create(),
    }
}

/// How an image at `path` calls the image at `base`.
fn relative_name(path: &Path, base: &Path) -> Result<String, ImageError> {
    let unsupported = |why: &str| ImageError::Unsupported {
        path: base.into(),
        why: why.to_owned(),
    };
    let real = |path: &Path| {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        path.canonicalize()
            .map_err(|error| ImageError::from_io("open", path, error))
    };
    let directory = real(path.parent().unwrap_or(Path::new(".")))?;
    let base = real(base)?;
    let shared = directory
        .components()
        .zip(base.components())
        .take_while(|(a, b)| a == b)
        .count();
    let mut name = PathBuf::new();
    for _ in directory.components().skip(shared) {
        name.push("..");
    }
    name.extend(base.components().skip(shared));
    let name = name.into_os_string().into_string();
    // QEMU reads everything up to a colon as a protocol.
    name.ok()
        .filter(|name| {
            !name.contains(':') && name.len() <= super::header::MAX_BACKING_NAME as usize
        })
        .ok_or_else(|| unsupported("its path is too long or not plain text; move it"))
}
