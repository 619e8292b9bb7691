//! What an image is, without opening it for I/O.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::confine::{Access, open_file};
use super::error::ImageError;
use super::file::file_bytes;
use super::format::Format;
use super::header::{Header, is_qcow2};

/// Facts about an image file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageInfo {
    /// The file.
    pub path: PathBuf,
    /// What it looks like. Good for showing, not for deciding how to run it: a guest can make
    /// its raw disk look like qcow2.
    pub format: Format,
    /// Bytes that a guest sees.
    pub virtual_bytes: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Bytes of storage it takes.
    pub allocated_bytes: u64,
    /// Cluster size of a qcow2 image.
    pub cluster_bytes: Option<u64>,
    /// Name and format of the image below, as written in the header.
    pub backing: Option<(String, Option<String>)>,
    /// Internal snapshots.
    pub snapshots: u32,
    /// The last writer did not close it; reference counts may be stale.
    pub dirty: bool,
    /// A writer found it damaged.
    pub corrupt: bool,
}

/// Look at the image at `path`, inside `root` if there is one.
pub fn info(root: Option<&Path>, path: &Path) -> Result<ImageInfo, ImageError> {
    let file = open_file(
        root,
        path,
        Access {
            write: false,
            direct: false,
        },
    )?;
    let fail = |error| ImageError::from_io("read", path, error);
    let bytes = file_bytes(&file).map_err(fail)?;
    let allocated_bytes = file.metadata().map_err(fail)?.blocks() * 512;
    let plain = ImageInfo {
        path: path.into(),
        format: Format::Raw,
        virtual_bytes: bytes,
        file_bytes: bytes,
        allocated_bytes,
        cluster_bytes: None,
        backing: None,
        snapshots: 0,
        dirty: false,
        corrupt: false,
    };
    if !is_qcow2(&file) {
        return Ok(plain);
    }
    let header = Header::read(&file, bytes, path)?;
    Ok(ImageInfo {
        format: Format::Qcow2,
        virtual_bytes: header.virtual_bytes,
        cluster_bytes: Some(1 << header.cluster_bits),
        backing: header
            .backing_file
            .map(|name| (name, header.backing_format)),
        snapshots: header.snapshots,
        dirty: header.dirty,
        corrupt: header.corrupt,
        ..plain
    })
}
