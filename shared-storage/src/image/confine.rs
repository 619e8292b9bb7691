//! Opening files without leaving the datastore, whatever a path or symlink says.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat2};

use super::error::ImageError;
use crate::undelegated;

/// How to open a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access {
    /// For writing too.
    pub(super) write: bool,
    /// Past the page cache.
    pub(super) direct: bool,
}

impl Access {
    fn flags(self) -> OFlags {
        let mut flags = OFlags::CLOEXEC | OFlags::NONBLOCK;
        flags |= if self.write {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        if self.direct {
            flags |= OFlags::DIRECT;
        }
        flags
    }
}

/// Open `path`, which must be a regular file or block device and, when there is a `root`, lie
/// inside it even after every symlink is followed (openat2(2), `RESOLVE_BENEATH`).
pub(super) fn open_file(
    root: Option<&Path>,
    path: &Path,
    access: Access,
) -> Result<File, ImageError> {
    let act = if access.write { "write" } else { "read" };
    let (from, inside, resolve) = match root {
        None => (None, path.to_path_buf(), ResolveFlags::empty()),
        Some(root) => (
            Some(directory(root)?),
            relative_to(root, path)?,
            ResolveFlags::BENEATH,
        ),
    };
    let open_with = |more| {
        let from = from.as_ref().map_or(CWD, OwnedFd::as_fd);
        let flags = access.flags() | more;
        openat2(from, &inside, flags, Mode::empty(), resolve).map(File::from)
    };
    let opened = if access.write || access.direct {
        open_with(OFlags::empty())
    } else {
        undelegated::open_by(open_with)
    };
    let file = opened.map_err(|error| {
        let error = io::Error::from(error);
        match (error.kind(), root) {
            (io::ErrorKind::CrossesDevices, Some(root)) => ImageError::Escapes {
                path: path.into(),
                root: root.into(),
            },
            // A direct open of a file system that cannot do it.
            (io::ErrorKind::InvalidInput, _) if access.direct => ImageError::Unsupported {
                path: path.into(),
                why: "its file system cannot bypass the page cache; use direct=off".into(),
            },
            (io::ErrorKind::IsADirectory, _) => ImageError::NotAFile(path.into()),
            _ => ImageError::from_io(act, path, error),
        }
    })?;
    let kind = file
        .metadata()
        .map_err(|error| ImageError::from_io(act, path, error))?
        .file_type();
    if kind.is_file() || std::os::unix::fs::FileTypeExt::is_block_device(&kind) {
        Ok(file)
    } else {
        Err(ImageError::NotAFile(path.into()))
    }
}

/// Open the directory `path`, inside `root` if there is one.
pub(super) fn open_directory(root: Option<&Path>, path: &Path) -> Result<OwnedFd, ImageError> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let Some(root) = root else {
        return directory(path);
    };
    let inside = match relative_to(root, path)? {
        inside if inside.as_os_str().is_empty() => PathBuf::from("."),
        inside => inside,
    };
    openat2(
        directory(root)?,
        inside,
        flags,
        Mode::empty(),
        ResolveFlags::BENEATH,
    )
    .map_err(|error| match io::Error::from(error) {
        error if error.kind() == io::ErrorKind::CrossesDevices => ImageError::Escapes {
            path: path.into(),
            root: root.into(),
        },
        error => ImageError::from_io("open", path, error),
    })
}

fn directory(path: &Path) -> Result<OwnedFd, ImageError> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty())
        .map_err(|error| ImageError::from_io("open", path, error.into()))
}

/// `path` as seen from `root`. A path that does not even name the root is refused; `..` in
/// what follows is left to the kernel.
fn relative_to(root: &Path, path: &Path) -> Result<PathBuf, ImageError> {
    let absolute = |path: &Path| std::path::absolute(path);
    let escapes = || ImageError::Escapes {
        path: path.into(),
        root: root.into(),
    };
    let path = absolute(path).map_err(|_| escapes())?;
    let plain = absolute(root).map_err(|_| escapes())?;
    if let Ok(inside) = path.strip_prefix(&plain) {
        return Ok(inside.to_path_buf());
    }
    let canonical = root
        .canonicalize()
        .map_err(|error| ImageError::from_io("open", root, error))?;
    path.strip_prefix(canonical)
        .map(Path::to_path_buf)
        .map_err(|_| escapes())
}
