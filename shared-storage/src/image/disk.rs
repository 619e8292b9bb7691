//! An open disk: vectored I/O between guest memory and an image, raw or qcow2.
//!
//! ```text
//!            acquire (lock, read metadata)
//!   released ─────────────────────────────► held ── read, write, flush, discard ──┐
//!      ▲                                    │  ▲                                  │
//!      └──── release (flush, unlock) ───────┘  └──────────────────────────────────┘
//! ```
//!
//! The target of a migration opens its disks *deferred*: everything that can fail early has
//! been checked, nothing is locked or cached until the source has let go.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use imago::format::PreallocateMode;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::{Mapping, StorageExt};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::chain;
use super::error::{DiskError, ImageError};
use super::file::{Guard, GuardedFile};
use super::format::{Format, Image, open_format};
use super::lock::Kind;
use super::place::NewImage;
use crate::gate::{AlwaysOpen, Gate};

/// Bytes of a sector, the unit of a disk's size.
pub const SECTOR_BYTES: u64 = 512;

/// Which image to open, and how.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// The image file, or a block device.
    pub path: PathBuf,
    /// Its format. Never guessed: a guest could make its raw disk look like something else.
    pub format: Format,
    /// Refuse writes, and share the image with other readers.
    pub readonly: bool,
    /// Bypass the host's page cache.
    pub direct: bool,
    /// The image and everything below it must lie inside this directory (the datastore).
    pub root: Option<PathBuf>,
    /// Asked before every system call that moves data.
    pub gate: Arc<dyn Gate>,
    /// Check everything but leave the image unlocked until [`Disk::acquire`].
    pub deferred: bool,
}

impl DiskOptions {
    /// A writable image without a lease or a datastore, through the page cache.
    pub fn new(path: impl Into<PathBuf>, format: Format) -> Self {
        Self {
            path: path.into(),
            format,
            readonly: false,
            direct: false,
            root: None,
            gate: Arc::new(AlwaysOpen),
            deferred: false,
        }
    }
}

/// An open disk. All methods may be called from several threads at once.
#[derive(Debug)]
pub struct Disk {
    options: DiskOptions,
    guard: Arc<Guard>,
    bytes: AtomicU64,
    // Dropped, and so written back, before `top` gives up the lock.
    image: RwLock<Option<Image>>,
    top: GuardedFile,
}

impl Disk {
    /// Open, check and (unless `deferred`) lock an image.
    pub fn open(options: DiskOptions) -> Result<Self, ImageError> {
        let guard = Arc::new(Guard::new(options.gate.clone()));
        let (top, bytes) =
            chain::open_layer(&options, &options.path, options.format, true, &guard)?;
        let bytes = AtomicU64::new(bytes);
        let disk = Self {
            options,
            guard,
            top,
            bytes,
            image: RwLock::new(None),
        };
        if disk.options.deferred {
            disk.guard.set_held(false);
            chain::check(&disk.options, &disk.guard)?;
        } else {
            disk.acquire()?;
        }
        Ok(disk)
    }

    /// Lock the image and read its metadata afresh. Does nothing when it is held already.
    pub fn acquire(&self) -> Result<(), ImageError> {
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        if image.is_some() {
            return Ok(());
        }
        let path = &self.options.path;
        let kind = if self.options.readonly {
            Kind::Shared
        } else {
            Kind::Exclusive
        };
        if !self
            .top
            .lock(kind)
            .map_err(|error| ImageError::from_io("lock", path, error))?
        {
            return Err(ImageError::Locked(path.clone()));
        }
        self.guard.set_held(true);
        match chain::build(&self.options, &self.top, &self.guard) {
            Ok(built) => {
                self.bytes.store(
                    built.size() / SECTOR_BYTES * SECTOR_BYTES,
                    Ordering::Release,
                );
                *image = Some(built);
                Ok(())
            }
            Err(error) => {
                self.guard.set_held(false);
                let _ = self.top.unlock();
                Err(error)
            }
        }
    }

    /// Write back what is cached and let go of the image, so that another host may
    /// [`Disk::acquire`] it. On error the disk is still held. Does nothing when not held.
    pub fn release(&self) -> Result<(), DiskError> {
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = image.as_ref() else {
            return Ok(());
        };
        if !self.options.readonly {
            self.judge(|| held.flush().and_then(|()| held.sync()))?;
        }
        self.guard.set_held(false);
        *image = None;
        self.top.unlock()?;
        Ok(())
    }

    /// Bytes that the guest sees; a multiple of [`SECTOR_BYTES`].
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    pub(super) fn top(&self) -> &GuardedFile {
        &self.top
    }

    pub(super) fn format(&self) -> Format {
        self.options.format
    }

    pub(super) fn is_direct(&self) -> bool {
        self.options.direct
    }

    /// May bytes move at this instant?
    pub(super) fn pass(&self) -> Result<(), DiskError> {
        self.judge(|| self.guard.pass())
    }

    /// Whether writes are refused.
    pub fn readonly(&self) -> bool {
        self.options.readonly
    }

    /// Path of the topmost image.
    pub fn path(&self) -> &Path {
        &self.options.path
    }

    /// Requests that are not aligned to this many bytes cost a read-modify-write.
    pub fn preferred_align(&self) -> usize {
        self.top.request_align().max(SECTOR_BYTES as usize)
    }

    /// Fill `slices` from `offset`, and mark them dirty. May leave part of them written on
    /// error.
    pub fn read_at<'a, B: BitmapSlice>(
        &self,
        offset: u64,
        slices: &'a [VolatileSlice<'a, B>],
    ) -> Result<(), DiskError> {
        self.check_range(offset, slices.iter().map(|slice| slice.len() as u64).sum())?;
        self.with_image(|image| {
            // The guard marks the slices dirty when it goes, after the data has arrived.
            let (vector, _marks) = IoVectorMut::from_volatile_slice(slices);
            image.readv(vector, offset)
        })
    }

    /// Write `slices` to `offset`. The bytes are durable after [`Disk::flush`].
    pub fn write_at<'a, B: BitmapSlice>(
        &self,
        offset: u64,
        slices: &'a [VolatileSlice<'a, B>],
    ) -> Result<(), DiskError> {
        self.check_write(offset, slices.iter().map(|slice| slice.len() as u64).sum())?;
        self.with_image(|image| {
            let (vector, _alive) = IoVector::from_volatile_slice(slices);
            image.writev(vector, offset)
        })
    }

    /// Make everything written so far durable.
    pub fn flush(&self) -> Result<(), DiskError> {
        if self.options.readonly {
            return Ok(());
        }
        self.with_image(|image| {
            image.flush()?;
            image.sync()
        })
    }

    /// The guest no longer needs this range; it may be freed, and reads anything until it is
    /// written again.
    pub fn discard(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.check_write(offset, bytes)?;
        let done = match self.options.format {
            Format::Raw => self.with_image(|image| {
                // SAFETY: raw images map every byte to itself, whatever is discarded.
                unsafe { image.discard_to_any_unsafe(offset, bytes) }
            }),
            Format::Qcow2 => self.with_image_alone(|image| image.discard_to_any(offset, bytes)),
        };
        match done {
            // A discard is only ever advice.
            Err(DiskError::Io(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }

    /// Make the range read as zeroes; with `unmap` its storage may be freed.
    pub fn write_zeroes(&self, offset: u64, bytes: u64, unmap: bool) -> Result<(), DiskError> {
        self.check_write(offset, bytes)?;
        let done = match (self.options.format, unmap) {
            (Format::Qcow2, true) => {
                self.with_image_alone(|image| image.discard_to_zero(offset, bytes))
            }
            (Format::Raw, false) => self.with_image(|image| zero_allocated(image, offset, bytes)),
            _ => self.with_image(|image| image.write_zeroes(offset, bytes)),
        };
        match done {
            Err(DiskError::Io(error)) if error.kind() == io::ErrorKind::Unsupported => {
                self.with_image(|image| zero_by_writing(image, offset, bytes))
            }
            other => other,
        }
    }

    /// Length of the run that begins at `offset`, and whether it may hold anything but zeroes.
    pub(super) fn run_at(&self, offset: u64) -> io::Result<(u64, bool)> {
        let rest = self.bytes().saturating_sub(offset);
        if self.options.format == Format::Raw {
            return self.top.run_at(offset, rest);
        }
        let held = self.held();
        let image = held.as_ref().ok_or_else(released)?;
        match image.get_mapping(offset, rest)? {
            (Mapping::Zero { .. }, bytes) => Ok((bytes, false)),
            (_, bytes) => Ok((bytes, true)),
        }
    }

    /// The disk in a file that is still being made.
    pub(super) fn on_new_file(new: &NewImage, format: Format) -> Result<Self, ImageError> {
        let fail = |error| ImageError::from_io("write", new.path(), error);
        let options = DiskOptions::new(new.path(), format);
        let guard = Arc::new(Guard::new(options.gate.clone()));
        let file = new.file().try_clone().map_err(fail)?;
        let top = GuardedFile::new(file, new.path().to_path_buf(), false, guard.clone());
        let top = top.map_err(fail)?;
        let file = top.try_clone().map_err(fail)?;
        let image = open_format(file, format, true, None).map_err(fail)?;
        let bytes = AtomicU64::new(image.size());
        Ok(Self {
            options,
            guard,
            top,
            bytes,
            image: RwLock::new(Some(image)),
        })
    }

    /// Change the size; the caller has judged it.
    pub(super) fn resize(&self, bytes: u64) -> io::Result<()> {
        let mut held = self.image.write().unwrap_or_else(PoisonError::into_inner);
        let image = held.as_mut().ok_or_else(released)?;
        image.resize(bytes, PreallocateMode::None)?;
        image.flush()?;
        image.sync()?;
        self.bytes.store(bytes, Ordering::Release);
        Ok(())
    }

    /// Number of images from the top to the base, both included.
    pub(super) fn depth(&self) -> usize {
        chain::layers(&self.options).map_or(1, |layers| layers.len())
    }

    fn check_range(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes() => Ok(()),
            _ => Err(DiskError::Io(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{bytes} bytes at {offset} reach past the end of the disk"),
            ))),
        }
    }

    fn check_write(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        if self.options.readonly {
            return Err(DiskError::Io(io::ErrorKind::ReadOnlyFilesystem.into()));
        }
        self.check_range(offset, bytes)
    }

    fn held(&self) -> RwLockReadGuard<'_, Option<Image>> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_image(&self, act: impl FnOnce(&Image) -> io::Result<()>) -> Result<(), DiskError> {
        let held = self.held();
        let image = held.as_ref().ok_or_else(not_held)?;
        self.judge(|| act(image))
    }

    /// Nobody else does I/O meanwhile: discarding moves what others may be writing to.
    fn with_image_alone(
        &self,
        act: impl FnOnce(&mut Image) -> io::Result<()>,
    ) -> Result<(), DiskError> {
        let mut held = self.image.write().unwrap_or_else(PoisonError::into_inner);
        let image = held.as_mut().ok_or_else(not_held)?;
        self.judge(|| act(image))
    }

    /// Tell a shut gate from an error of the storage.
    fn judge(&self, act: impl FnOnce() -> io::Result<()>) -> Result<(), DiskError> {
        let before = self.guard.refusals();
        act().map_err(|error| {
            if self.guard.refusals() == before {
                error.into()
            } else {
                crate::gate::Shut.into()
            }
        })
    }
}

fn released() -> io::Error {
    io::Error::other("the disk has been released to another host")
}

fn not_held() -> DiskError {
    DiskError::Io(released())
}

/// Zero a range of a raw image and keep its blocks.
fn zero_allocated(image: &Image, mut offset: u64, mut bytes: u64) -> io::Result<()> {
    while bytes > 0 {
        let (mapping, length) = image.get_mapping(offset, bytes)?;
        let Mapping::Raw {
            storage,
            offset: at,
            ..
        } = mapping
        else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        storage.write_allocated_zeroes(at, length)?;
        offset += length;
        bytes -= length;
    }
    Ok(())
}

/// The slow way, for formats and file systems without any other.
fn zero_by_writing(image: &Image, mut offset: u64, mut bytes: u64) -> io::Result<()> {
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    while bytes > 0 {
        let count = bytes.min(ZEROES.len() as u64);
        image.write(&ZEROES[..count as usize], offset)?;
        offset += count;
        bytes -= count;
    }
    Ok(())
}
