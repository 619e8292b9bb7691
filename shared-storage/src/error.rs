//! What can go wrong with the datastore, said with the remedy where there is one.

use std::io;
use std::path::{Path, PathBuf};

use storage_core::lease::{Held, Refusal};
use storage_core::name::NameError;
use storage_core::record::RecordError;
use storage_core::timing::TimingError;

/// A failed act on the datastore.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system said no.
    #[error("cannot {act} {}: {source}{}", path.display(), remedy(source))]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// There is no cluster.toml.
    #[error("{} is not a datastore: it has no cluster.toml; make one with `godwit-store init`", .0.display())]
    NotADatastore(PathBuf),
    /// It is there already.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// It is not there.
    #[error("there is no {}", .0.display())]
    Missing(PathBuf),
    /// Written by a newer release.
    #[error("{} has version {found}, this release knows versions up to {known}: update it", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// A text file that does not say what it should.
    #[error("{} is not valid: {why}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line where known.
        why: String,
    },
    /// A file larger than anything we write.
    #[error("{} has {bytes} bytes, more than the {limit} that are allowed", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A damaged or foreign record.
    #[error("{}: {source}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: RecordError,
    },
    /// Timings under which two hosts could own one guest.
    #[error("{}: {source}", path.display())]
    Timing {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        source: TimingError,
    },
    /// A name that cannot be a file name.
    #[error("{name:?} cannot be a name: {source}")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        source: NameError,
    },
    /// Somebody else changed it since it was read.
    #[error("{} is at revision {found} now, not {expected}: read it again and repeat the change", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// The revision that was read.
        expected: u64,
        /// The revision there is.
        found: u64,
    },
    /// A disk that stays where it is when the guest is taken over.
    #[error(
        "{} would not be fenced when another host takes the guest over: under a lease a guest \
         writes to files in {} that end in .raw, .img or .qcow2; put it there, or make it read-only",
        path.display(), dir.display()
    )]
    NotFenced {
        /// The disk.
        path: PathBuf,
        /// The guest's directory.
        dir: PathBuf,
    },
    /// The lease may not be claimed.
    #[error("cannot claim the lease of {subject}: {source}")]
    Held {
        /// The guest's name, or the leadership.
        subject: String,
        /// Why not.
        source: Box<Held>,
    },
    /// The lease was not got.
    #[error("did not get the lease of {subject}: {source}")]
    Refused {
        /// The guest's name, or the leadership.
        subject: String,
        /// Why not.
        source: Box<Refusal>,
    },
    /// Another process of this host runs the guest.
    #[error("guest {0} is run by another process of this host")]
    RunsHere(String),
    /// No answer in time. The act may still happen.
    #[error("{act} of {subject} was not answered within {waited_ms} ms")]
    NoAnswer {
        /// What was tried.
        act: &'static str,
        /// On what.
        subject: String,
        /// How long it was waited for.
        waited_ms: u64,
    },
}

impl StoreError {
    /// Wraps the answer of the file system.
    pub fn io(act: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { act, path, source }
    }

    /// Whether the file is there and does not hold what any release would have written.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Record { source, .. } => !matches!(source, RecordError::Version { .. }),
            Self::Invalid { .. } | Self::TooLarge { .. } => true,
            _ => false,
        }
    }

    /// The kind of the file system's answer, when that is what this is.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } => Some(source.kind()),
            _ => None,
        }
    }
}

/// What helps against it, as the end of a sentence.
pub(crate) fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => "; mount the datastore read-write",
        io::ErrorKind::PermissionDenied => {
            "; run as a user that owns the datastore, and export NFS with no_root_squash"
        }
        io::ErrorKind::StorageFull => "; free space on the datastore",
        io::ErrorKind::QuotaExceeded => "; raise the quota of the datastore",
        io::ErrorKind::StaleNetworkFileHandle => "; the server lost the export: mount it again",
        _ => "",
    }
}
