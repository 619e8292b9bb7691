//! An image and those below it, from the top to the base: which files they are, whether they may
//! be used, and the drivers on top of each other.
//!
//! A name in a header is never trusted: it is followed inside the datastore only, and its format
//! has to be written beside it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::confine::{Access, open_file};
use super::disk::{DiskOptions, SECTOR_BYTES};
use super::error::ImageError;
use super::file::{Guard, GuardedFile, file_bytes};
use super::format::{Format, Image, open_format};
use super::header::Header;
use super::lock::Kind;

/// Most images under the topmost one.
pub const MAX_BACKING_IMAGES: usize = 16;

/// The images from the top to the base, by what their headers say. Opens none for I/O.
pub fn layers(top: &DiskOptions) -> Result<Vec<(PathBuf, Format)>, ImageError> {
    let mut layers = vec![(top.path.clone(), top.format)];
    while let Some((path, format)) = layers.last()
        && let Some(below) = backing(top, path, *format)?
    {
        if layers.len() > MAX_BACKING_IMAGES {
            return Err(ImageError::TooDeep {
                path: top.path.clone(),
                max: MAX_BACKING_IMAGES,
            });
        }
        layers.push(below);
    }
    Ok(layers)
}

/// Open what a deferred disk will need later, and let it go again.
pub(super) fn check(top: &DiskOptions, guard: &Arc<Guard>) -> Result<(), ImageError> {
    for (path, format) in layers(top)?.iter().skip(1) {
        open_layer(top, path, *format, false, guard)?;
    }
    Ok(())
}

/// Build the format drivers, from the base up, on the topmost file, which is locked.
pub(super) fn build(
    top: &DiskOptions,
    file: &GuardedFile,
    guard: &Arc<Guard>,
) -> Result<Image, ImageError> {
    let mut layers = layers(top)?;
    let mut image = None;
    while let Some((path, format)) = layers.pop() {
        let is_top = layers.is_empty();
        let file = if is_top {
            file.try_clone()
                .map_err(|error| ImageError::from_io("open", &path, error))?
        } else {
            let (file, _) = open_layer(top, &path, format, false, guard)?;
            let locked = file.lock(Kind::Shared);
            if !locked.map_err(|error| ImageError::from_io("lock", &path, error))? {
                return Err(ImageError::Locked(path));
            }
            file
        };
        let writable = is_top && !top.readonly;
        let opened = open_format(file, format, writable, image.take());
        image = Some(opened.map_err(|error| ImageError::from_io("open", &path, error))?);
    }
    image.ok_or_else(|| ImageError::Absent(top.path.clone()))
}

/// Path and format of the image below the one at `path`.
fn backing(
    top: &DiskOptions,
    path: &Path,
    format: Format,
) -> Result<Option<(PathBuf, Format)>, ImageError> {
    if format == Format::Raw {
        return Ok(None);
    }
    let header = read_header(top, path)?;
    let Some(name) = header.backing_file else {
        return Ok(None);
    };
    let unsupported = |why: String| ImageError::Unsupported {
        path: path.into(),
        why,
    };
    // Guessing would let the contents of a raw base decide what is opened.
    let format = header.backing_format.ok_or_else(|| {
        unsupported(
            "it does not say the format of its backing file; \
                 fix it with `qemu-img rebase -u -F`"
                .into(),
        )
    })?;
    let format = Format::from_name(&format)
        .ok_or_else(|| unsupported(format!("its backing file has format {format}")))?;
    let directory = path.parent().unwrap_or(Path::new("."));
    Ok(Some((directory.join(name), format)))
}

/// Open and judge one file of the chain; returns it with its size as the guest sees it.
pub(super) fn open_layer(
    options: &DiskOptions,
    path: &Path,
    format: Format,
    is_top: bool,
    guard: &Arc<Guard>,
) -> Result<(GuardedFile, u64), ImageError> {
    let access = Access {
        write: is_top && !options.readonly,
        direct: options.direct,
    };
    let file = open_file(options.root.as_deref(), path, access)?;
    let file = GuardedFile::new(file, path.to_path_buf(), options.direct, guard.clone())
        .map_err(|error| ImageError::from_io("open", path, error))?;
    let bytes = match format {
        Format::Raw => file.bytes(),
        Format::Qcow2 => {
            let header = read_header(options, path)?;
            if header.corrupt && access.write {
                return Err(ImageError::Unsupported {
                    path: path.into(),
                    why: "it is marked as damaged; repair it with `qemu-img check -r all`".into(),
                });
            }
            header.virtual_bytes
        }
    };
    let why = if bytes < SECTOR_BYTES {
        Some(format!("{bytes} bytes are less than one sector"))
    } else if format == Format::Raw && !bytes.is_multiple_of(SECTOR_BYTES) {
        Some(format!("its {bytes} bytes end within a sector"))
    } else {
        None
    };
    if let Some(why) = why {
        return Err(ImageError::Truncated {
            path: path.into(),
            why,
        });
    }
    Ok((file, bytes / SECTOR_BYTES * SECTOR_BYTES))
}

fn read_header(options: &DiskOptions, path: &Path) -> Result<Header, ImageError> {
    let access = Access {
        write: false,
        direct: false,
    };
    let file = open_file(options.root.as_deref(), path, access)?;
    let bytes = file_bytes(&file).map_err(|error| ImageError::from_io("read", path, error))?;
    Header::read(&file, bytes, path)
}
