//! Copying a disk from image to image, leaving out what is zero.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::create::write_empty;
use super::disk::{Disk, DiskOptions};
use super::error::{DiskError, ImageError};
use super::format::Format;
use super::place::NewImage;

/// Bytes read at a time, and between two reports.
const CHUNK_BYTES: usize = 1 << 20;
/// Runs of zeroes shorter than this are copied like data.
const ZERO_BYTES: usize = 64 << 10;

/// How far a copy has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyProgress {
    /// Bytes of the disk dealt with, holes included.
    pub done_bytes: u64,
    /// Bytes that had to be written.
    pub written_bytes: u64,
    /// Size of the disk.
    pub total_bytes: u64,
}

/// Copy the disk that `source` describes (its whole backing chain, as the guest sees it) into a
/// new image `path` of `format`. `report` is called after every chunk and may break off the
/// copy. Returns the last progress. On error, or broken off, nothing is left behind.
pub fn copy(
    source: DiskOptions,
    path: &Path,
    format: Format,
    mut report: impl FnMut(CopyProgress) -> ControlFlow<()>,
) -> Result<CopyProgress, ImageError> {
    let root = source.root.clone();
    let from = source.path.clone();
    let source = Disk::open(DiskOptions {
        readonly: true,
        deferred: false,
        ..source
    })?;
    let new = NewImage::begin(root.as_deref(), path)?;
    write_empty(&new, format, source.bytes(), None)?;
    let target = Disk::on_new_file(&new, format)?;
    let mut progress = CopyProgress {
        done_bytes: 0,
        written_bytes: 0,
        total_bytes: source.bytes(),
    };
    let mut buffer = vec![0; CHUNK_BYTES];
    while progress.done_bytes < progress.total_bytes {
        let at = progress.done_bytes;
        let (run, is_data) = source
            .run_at(at)
            .map_err(|error| ImageError::from_io("read", &from, error))?;
        let bytes = if is_data {
            run.min(CHUNK_BYTES as u64)
        } else {
            run
        };
        if is_data {
            let chunk = &mut buffer[..bytes as usize];
            source
                .read_at(at, &[VolatileSlice::from(&mut *chunk)])
                .map_err(|error| ImageError::from_io("read", &from, plain(error)))?;
            progress.written_bytes += write_data(&target, at, chunk)
                .map_err(|error| ImageError::from_io("write", path, plain(error)))?;
        }
        progress.done_bytes += bytes;
        if report(progress).is_break() {
            let source = io::ErrorKind::Interrupted.into();
            return Err(ImageError::Io {
                act: "copy",
                path: from,
                source,
            });
        }
    }
    target
        .release()
        .map_err(|error| ImageError::from_io("write", path, plain(error)))?;
    drop(target);
    new.show()?;
    Ok(progress)
}

/// Write what is not zero; returns how much that was.
fn write_data(target: &Disk, at: u64, chunk: &mut [u8]) -> Result<u64, DiskError> {
    let mut written = 0;
    let mut offset = at;
    for piece in chunk.chunks_mut(ZERO_BYTES) {
        let bytes = piece.len() as u64;
        if piece.iter().any(|byte| *byte != 0) {
            target.write_at(offset, &[VolatileSlice::from(piece)])?;
            written += bytes;
        }
        offset += bytes;
    }
    Ok(written)
}

fn plain(error: DiskError) -> io::Error {
    match error {
        DiskError::Io(error) => error,
        DiskError::Shut(shut) => io::Error::other(shut),
    }
}

/// How a new guest got its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// It shares its blocks with the original until one is written.
    Reflink,
    /// It was copied.
    Copy(CopyProgress),
}

/// A second, independent image like `source`: by reflink where the file system can, else by
/// copying. `source` keeps its format and must not have a backing image to be reflinked.
pub fn duplicate(
    source: DiskOptions,
    path: &Path,
    report: impl FnMut(CopyProgress) -> ControlFlow<()>,
) -> Result<Made, ImageError> {
    // Opened, and so locked against writers, for as long as the clone takes.
    let options = DiskOptions {
        readonly: true,
        deferred: false,
        ..source.clone()
    };
    let held = Arc::new(Disk::open(options)?);
    let alone = held.depth() == 1;
    if alone && super::create::reflink(source.root.as_deref(), &source.path, path)? {
        return Ok(Made::Reflink);
    }
    drop(held);
    let format = source.format;
    copy(source, path, format, report).map(Made::Copy)
}
