//! Where a new image will appear: built under a temporary name, shown whole or not at all.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, linkat, openat, renameat_with, unlinkat};
use rustix::io::Errno;

use super::confine::open_directory;
use super::error::ImageError;
use crate::atomic::TEMPORARY;
use crate::clock::random;

const NEW_FILE_MODE: Mode = Mode::from_raw_mode(0o644);

/// A file under construction. Dropped before [`NewImage::show`], it leaves nothing behind.
pub(super) struct NewImage {
    directory: OwnedFd,
    temporary: OsString,
    name: OsString,
    path: PathBuf,
    file: File,
    shown: bool,
}

impl NewImage {
    /// Begin the file that is to be `path`, inside `root` if there is one. Nothing may be
    /// there yet.
    pub(super) fn begin(root: Option<&Path>, path: &Path) -> Result<Self, ImageError> {
        let name = path
            .file_name()
            .ok_or_else(|| ImageError::NotAFile(path.into()))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let directory = open_directory(root, parent)?;
        if rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Err(ImageError::Exists(path.into()));
        }
        let unique = u64::from_le_bytes(random());
        let temporary = OsString::from(format!("{TEMPORARY}image-{unique:016x}"));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&directory, &temporary, flags, NEW_FILE_MODE)
            .map_err(|error| ImageError::from_io("write", path, error.into()))?;
        Ok(Self {
            directory,
            temporary,
            name: name.to_owned(),
            path: path.to_path_buf(),
            file: File::from(file),
            shown: false,
        })
    }

    /// The file, open for reading and writing.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The final path, for errors.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Make it durable and give it its name, unless somebody took the name meanwhile.
    pub(super) fn show(mut self) -> Result<(), ImageError> {
        let named = self
            .file
            .sync_all()
            .and_then(|()| self.rename().map_err(io::Error::from));
        named.map_err(|error| ImageError::from_io("write", &self.path, error))?;
        self.shown = true;
        match rustix::fs::fsync(&self.directory) {
            // Some network file systems make directory changes durable at once.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(error) => Err(ImageError::from_io("write", &self.path, error.into())),
        }
    }

    fn rename(&self) -> Result<(), Errno> {
        let (directory, temporary, name) = (&self.directory, &self.temporary, &self.name);
        match renameat_with(
            directory,
            temporary,
            directory,
            name,
            RenameFlags::NOREPLACE,
        ) {
            // NFS knows no such rename; a hard link does not replace either.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                linkat(directory, temporary, directory, name, AtFlags::empty())?;
                unlinkat(directory, temporary, AtFlags::empty())
            }
            other => other,
        }
    }
}

impl Drop for NewImage {
    fn drop(&mut self) {
        if !self.shown {
            let _ = unlinkat(&self.directory, &self.temporary, AtFlags::empty());
        }
    }
}
