//! What can go wrong with a disk image, in words a person can act on.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::remedy;
use crate::gate::Shut;

/// An image cannot be opened, made, copied or changed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No such file.
    #[error("image {} does not exist; check the path, or create it", .0.display())]
    Absent(PathBuf),
    /// Something else of that name exists already.
    #[error("image {} exists already; choose another name or remove it", .0.display())]
    Exists(PathBuf),
    /// A directory, socket, ...
    #[error("{} is neither a regular file nor a block device, so it cannot be a disk", .0.display())]
    NotAFile(PathBuf),
    /// Not of the format that was asked for.
    #[error("{} is not a {format} image ({why}); check its format", path.display())]
    NotAnImage {
        /// The file.
        path: PathBuf,
        /// The format that was expected.
        format: &'static str,
        /// What gave it away.
        why: String,
    },
    /// Shorter than its own header says.
    #[error("image {} is truncated: {why}; restore it from a copy", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
    /// A feature we do not know.
    #[error("image {} cannot be used: {why}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is not supported, and what to do.
        why: String,
    },
    /// Another process holds the lock.
    #[error(
        "image {} is in use by another process on this or another host; stop that guest first",
        .0.display()
    )]
    Locked(PathBuf),
    /// Another image than a guest runs on.
    #[error(
        "image {} is not the one that the guest runs on ({why}); its disks must lie on storage \
         that both hosts share, under the same path",
        path.display()
    )]
    NotTheSame {
        /// The file.
        path: PathBuf,
        /// What gave it away.
        why: String,
    },
    /// No right to read or write it.
    #[error(
        "no permission to {act} image {}; give this user access, or use it read-only",
        path.display()
    )]
    Permission {
        /// The file.
        path: PathBuf,
        /// `read` or `write`.
        act: &'static str,
    },
    /// A path that leads out of the datastore.
    #[error("{} lies outside {}; move the image inside", path.display(), root.display())]
    Escapes {
        /// The offending path.
        path: PathBuf,
        /// Where it would have to be.
        root: PathBuf,
    },
    /// Too many images under one another.
    #[error("image {} has more than {max} backing images; flatten the chain", path.display())]
    TooDeep {
        /// The image at the top.
        path: PathBuf,
        /// The limit.
        max: usize,
    },
    /// Anything else that the operating system reports.
    #[error("cannot {act} image {}: {source}{}", path.display(), remedy(source))]
    Io {
        /// The failed act.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// The right error for `source`, which happened while we did `act` to `path`.
    pub(super) fn from_io(act: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Absent(path),
            io::ErrorKind::AlreadyExists => Self::Exists(path),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                let act = if act == "open" { "read" } else { act };
                Self::Permission { path, act }
            }
            // openat2(2): the path left the root it was confined to.
            io::ErrorKind::CrossesDevices => Self::Escapes {
                path,
                root: PathBuf::from("its datastore"),
            },
            _ => Self::Io { act, path, source },
        }
    }
}

/// A request to an open disk failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The gate is shut: the request was not carried out (or only in part) and may be tried
    /// again once the gate is open.
    #[error(transparent)]
    Shut(#[from] Shut),
    /// The storage says no; the guest is to see an I/O error.
    #[error(transparent)]
    Io(#[from] io::Error),
}
