//! The one place where bytes of an image reach its file: a storage driver for imago that asks
//! the gate before every system call and holds the lock on the descriptor it uses.

use std::fmt::{self, Display};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use imago::Storage;
use imago::io_buffers::{IoBuffer, IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::lock;
use crate::gate::Gate;

/// Most pieces of memory one system call takes (`IOV_MAX`).
const MAX_IOVECS: usize = 1024;
const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// What all files of one disk share.
#[derive(Debug)]
pub(super) struct Guard {
    gate: Arc<dyn Gate>,
    held: AtomicBool,
    refusals: AtomicU64,
}

impl Guard {
    pub(super) fn new(gate: Arc<dyn Gate>) -> Self {
        Self {
            gate,
            held: AtomicBool::new(true),
            refusals: AtomicU64::new(0),
        }
    }

    /// Whether the disk may touch its files at all (it may not between release and acquire).
    pub(super) fn set_held(&self, held: bool) {
        self.held.store(held, Ordering::Release);
    }

    /// How often the gate was found shut; a change during a request tells why it failed,
    /// which the format driver's error no longer does.
    pub(super) fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Acquire)
    }

    pub(super) fn pass(&self) -> io::Result<()> {
        if !self.held.load(Ordering::Acquire) {
            return Err(io::Error::other(
                "the disk has been released to another host",
            ));
        }
        self.gate.pass().map_err(|shut| {
            self.refusals.fetch_add(1, Ordering::AcqRel);
            io::Error::new(io::ErrorKind::PermissionDenied, shut)
        })
    }
}

/// Alignments that the file asks of memory, offsets and lengths.
#[derive(Debug, Clone, Copy)]
struct Alignment {
    memory: usize,
    request: usize,
}

/// An open, locked image file.
#[derive(Debug)]
pub(super) struct GuardedFile {
    file: File,
    path: PathBuf,
    guard: Arc<Guard>,
    size: AtomicU64,
    alignment: Alignment,
    holes: AtomicBool,
    locked: AtomicBool,
    helper: CommonStorageHelper,
}

impl GuardedFile {
    /// Wrap an open file. `direct` says whether it was opened with `O_DIRECT`.
    pub(super) fn new(
        file: File,
        path: PathBuf,
        direct: bool,
        guard: Arc<Guard>,
    ) -> io::Result<Self> {
        let size = AtomicU64::new(file_bytes(&file)?);
        let alignment = if direct {
            direct_alignment(&file)?
        } else {
            Alignment::NONE
        };
        Ok(Self {
            file,
            path,
            guard,
            size,
            alignment,
            holes: AtomicBool::new(true),
            locked: AtomicBool::new(false),
            helper: CommonStorageHelper::default(),
        })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Take the lock; `false` when somebody else has it.
    pub(super) fn lock(&self, kind: lock::Kind) -> io::Result<bool> {
        let taken = lock::take(&self.file, kind)?;
        if taken {
            self.locked.store(true, Ordering::Release);
            // The previous holder may have grown the file since we opened it.
            self.size.store(file_bytes(&self.file)?, Ordering::Release);
        }
        Ok(taken)
    }

    /// A second descriptor of the same open file. The lock covers it, but stays with `self`.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            path: self.path.clone(),
            guard: self.guard.clone(),
            size: AtomicU64::new(self.bytes()),
            alignment: self.alignment,
            holes: AtomicBool::new(true),
            locked: AtomicBool::new(false),
            helper: CommonStorageHelper::default(),
        })
    }

    pub(super) fn unlock(&self) -> io::Result<()> {
        if self.locked.swap(false, Ordering::AcqRel) {
            lock::release(&self.file)?;
        }
        Ok(())
    }

    pub(super) fn bytes(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Length (at most `rest`) of the run of data or of holes at `offset`.
    pub(super) fn run_at(&self, offset: u64, rest: u64) -> io::Result<(u64, bool)> {
        use rustix::fs::{SeekFrom, seek};
        use rustix::io::Errno;
        let until = |end: u64| end.saturating_sub(offset).min(rest);
        match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => Ok((until(data), false)),
            Ok(_) => match seek(&self.file, SeekFrom::Hole(offset)) {
                Ok(hole) if hole > offset => Ok((until(hole), true)),
                _ => Ok((rest, true)),
            },
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => Ok((rest, false)),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok((rest, true)),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn request_align(&self) -> usize {
        self.alignment.request
    }

    /// Does the file take a request of these pieces at `offset` as it is?
    pub(super) fn takes<B: BitmapSlice>(&self, offset: u64, slices: &[VolatileSlice<B>]) -> bool {
        let Alignment { memory, request } = self.alignment;
        offset.is_multiple_of(request as u64)
            && slices.iter().all(|slice| {
                let at = slice.ptr_guard().as_ptr() as usize;
                at.is_multiple_of(memory) && slice.len().is_multiple_of(request)
            })
    }

    /// One vectored system call at `offset`: gate, call, gate, byte count. The second question
    /// is no less needed: a host that froze in the middle may find its call answered after the
    /// disk was cloned away, and must not take that for success.
    fn call(
        &self,
        iovecs: &[libc::iovec],
        offset: u64,
        call: unsafe extern "C" fn(
            libc::c_int,
            *const libc::iovec,
            libc::c_int,
            libc::off_t,
        ) -> libc::ssize_t,
    ) -> io::Result<u64> {
        let at = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let count =
            libc::c_int::try_from(iovecs.len().min(MAX_IOVECS)).map_err(io::Error::other)?;
        loop {
            self.guard.pass()?;
            // SAFETY: the first `count` entries describe memory that imago keeps alive
            // (and, for reads, hands over exclusively) for the length of the request.
            let done = unsafe { call(self.file.as_raw_fd(), iovecs.as_ptr(), count, at) };
            if let Ok(done) = u64::try_from(done) {
                self.guard.pass()?;
                return Ok(done);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    fn fallocate(&self, mode: libc::c_int, offset: u64, length: u64) -> io::Result<()> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let length = libc::off_t::try_from(length).map_err(io::Error::other)?;
        loop {
            self.guard.pass()?;
            // SAFETY: plain integers and an open descriptor.
            if unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, length) } == 0 {
                return self.guard.pass();
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EOPNOTSUPP | libc::ENODEV | libc::ENOSYS | libc::ENOTTY) => {
                    return Err(io::Error::new(io::ErrorKind::Unsupported, error));
                }
                _ => return Err(error),
            }
        }
    }

    /// Punch a hole into the part of the range that lies inside the file.
    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let inside = self.bytes().saturating_sub(offset).min(length);
        if inside == 0 {
            return Ok(());
        }
        if !self.holes.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        self.fallocate(mode, offset, inside).inspect_err(|error| {
            if error.kind() == io::ErrorKind::Unsupported {
                self.holes.store(false, Ordering::Relaxed);
            }
        })
    }

    fn grow(&self, end: u64) -> io::Result<()> {
        if end > self.bytes() {
            self.guard.pass()?;
            self.file.set_len(end)?;
            self.size.fetch_max(end, Ordering::AcqRel);
        }
        Ok(())
    }
}

impl Drop for GuardedFile {
    fn drop(&mut self) {
        // Closing is not enough: a child that was just forked may hold the descriptor yet.
        let _ = self.unlock();
    }
}

impl Display for GuardedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

impl Storage for GuardedFile {
    fn mem_align(&self) -> usize {
        self.alignment.memory
    }

    fn req_align(&self) -> usize {
        self.alignment.request
    }

    fn zero_align(&self) -> usize {
        PAGE
    }

    fn discard_align(&self) -> usize {
        PAGE
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.bytes())
    }

    fn resolve_relative_path<P: AsRef<Path>>(&self, relative: P) -> io::Result<PathBuf> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        Ok(directory.join(relative))
    }

    fn get_filename(&self) -> Option<PathBuf> {
        Some(self.path.clone())
    }

    unsafe fn pure_readv(&self, mut bufv: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        while !bufv.is_empty() {
            // SAFETY: the vector is used only while `bufv` lives.
            let iovecs = unsafe { bufv.as_iovec() };
            let done = self.call(iovecs, offset, libc::preadv)?;
            if done == 0 {
                if offset < self.bytes() {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        format!("{self} has been truncated while in use"),
                    ));
                }
                bufv.fill(0);
                break;
            }
            bufv = bufv.split_tail_at(done);
            offset += done;
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, mut bufv: IoVector<'_>, mut offset: u64) -> io::Result<()> {
        while !bufv.is_empty() {
            // SAFETY: the vector is used only while `bufv` lives.
            let iovecs = unsafe { bufv.as_iovec() };
            let done = self.call(iovecs, offset, libc::pwritev)?;
            if done == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bufv = bufv.split_tail_at(done);
            offset += done;
            self.size.fetch_max(offset, Ordering::AcqRel);
        }
        Ok(())
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.punch(offset, length)?;
        self.grow(offset.saturating_add(length))
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.fallocate(libc::FALLOC_FL_ZERO_RANGE, offset, length)?;
        self.size
            .fetch_max(offset.saturating_add(length), Ordering::AcqRel);
        Ok(())
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        match self.punch(offset, length) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.guard.pass()?;
        self.file.sync_data()?;
        self.guard.pass()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    fn resize(&self, new_size: u64, prealloc: PreallocateMode) -> io::Result<()> {
        let old = self.bytes();
        self.guard.pass()?;
        match prealloc {
            PreallocateMode::None | PreallocateMode::Zero => self.file.set_len(new_size)?,
            _ if new_size <= old => self.file.set_len(new_size)?,
            PreallocateMode::Allocate => self.fallocate(0, old, new_size - old)?,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        }
        self.size.store(new_size, Ordering::Release);
        Ok(())
    }
}

impl Alignment {
    const NONE: Self = Self {
        memory: 1,
        request: 1,
    };
}

/// Length of a regular file or block device.
pub(super) fn file_bytes(mut file: &File) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    use std::os::unix::fs::FileTypeExt;
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        // All our I/O is positioned, so the file position is free to use.
        return file.seek(SeekFrom::End(0));
    }
    Ok(metadata.len())
}

/// What `O_DIRECT` needs on this file. Asked of the kernel; where it does not know (before
/// Linux 6.1, and on NFS), found out by reading.
fn direct_alignment(file: &File) -> io::Result<Alignment> {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    if let Ok(status) = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        && status.stx_mask & StatxFlags::DIOALIGN.bits() != 0
        && status.stx_dio_offset_align.is_power_of_two()
        && status.stx_dio_mem_align.is_power_of_two()
    {
        return Ok(Alignment {
            memory: (status.stx_dio_mem_align as usize).max(SECTOR),
            request: (status.stx_dio_offset_align as usize).max(SECTOR),
        });
    }
    let mut buffer = IoBuffer::new(PAGE, PAGE)?;
    let page = buffer.as_mut().into_slice();
    match rustix::io::pread(file, &mut page[..SECTOR], 0) {
        Ok(_) => Ok(Alignment {
            memory: SECTOR,
            request: SECTOR,
        }),
        Err(rustix::io::Errno::INVAL) => Ok(Alignment {
            memory: PAGE,
            request: PAGE,
        }),
        Err(error) => Err(error.into()),
    }
}
