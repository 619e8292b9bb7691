//! What a machine stands on and what outlives it when the guest reboots: memory, open disks,
//! taps, the console.

use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use shared_storage::gate::Gate;
use shared_storage::image::{Disk, DiskOptions, Format, ImageError};
use vmm_core::mac::Mac;
use vmm_core::spec::{DiskFormat, Spec};

use crate::console::Console;
use crate::devices::virtio::tap::{Tap, TapError};
use crate::error::one_line;
use crate::memory::{self, GuestMemory, MemoryError};

/// How often a lock is tried that somebody else has.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// Why a guest's backends cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A disk.
    #[error("{}", one_line(.0))]
    Disk(#[from] ImageError),
    /// A network card.
    #[error("{}", one_line(.0))]
    Tap(#[from] TapError),
    /// A descriptor that was not handed in.
    #[error(
        "{0:?} names no descriptor that was handed to this process; write fd=N with N of 3 or more"
    )]
    Descriptor(String),
}

/// Where a guest's disks are and who lets them be written.
#[derive(Debug, Clone)]
pub struct DiskAccess {
    /// Asked before every byte goes out.
    pub gate: Arc<dyn Gate>,
    /// Relative paths start here; nothing outside may be opened.
    pub root: Option<PathBuf>,
    /// Leave the images unlocked until [`Backends::acquire_disks`]: the target of a
    /// migration.
    pub deferred: bool,
}

/// What a machine stands on.
pub struct Backends {
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// Open disks in the order of the spec.
    pub disks: Vec<Arc<Disk>>,
    /// Open taps in the order of the spec, and the cards' addresses.
    pub taps: Vec<(Tap, Mac)>,
    /// The console.
    pub console: Arc<Console>,
}

impl Backends {
    /// Open all that `spec` names. Nothing is created or changed.
    pub fn open(
        spec: &Spec,
        console: Arc<Console>,
        access: &DiskAccess,
    ) -> Result<Self, BackendError> {
        let memory = Arc::new(memory::map(spec.memory_mib, spec.hugepages)?);
        let mut taps = Vec::new();
        for net in &spec.nets {
            taps.push((open_tap(&net.tap)?, net.mac));
        }
        let mut disks = Vec::new();
        for disk in &spec.disks {
            let root = access.root.as_deref();
            disks.push(Arc::new(Disk::open(DiskOptions {
                path: root.map_or_else(|| PathBuf::from(&disk.path), |root| root.join(&disk.path)),
                format: match disk.format {
                    DiskFormat::Raw => Format::Raw,
                    DiskFormat::Qcow2 => Format::Qcow2,
                },
                readonly: disk.readonly,
                direct: disk.direct,
                root: access.root.clone(),
                gate: access.gate.clone(),
                deferred: access.deferred,
            })?));
        }
        Ok(Self {
            memory,
            disks,
            taps,
            console,
        })
    }

    /// As [`Backends::acquire_disks`], and waits for locks until `give_up`: those of a host that is
    /// gone last until the storage's server has given up on it. `waits` hears of each, once.
    pub fn await_disks(
        &self,
        give_up: Instant,
        waits: impl Fn(&ImageError),
    ) -> Result<(), BackendError> {
        for disk in &self.disks {
            let mut said = false;
            loop {
                match disk.acquire() {
                    Err(locked @ ImageError::Locked(_)) if Instant::now() < give_up => {
                        if !std::mem::replace(&mut said, true) {
                            waits(&locked);
                        }
                        thread::sleep(LOCK_POLL);
                    }
                    other => break other?,
                }
            }
        }
        Ok(())
    }

    /// Lock the images and read their metadata afresh.
    pub fn acquire_disks(&self) -> Result<(), BackendError> {
        for disk in &self.disks {
            disk.acquire()?;
        }
        Ok(())
    }

    /// Flush the images and let go of them: another host takes them over.
    pub fn release_disks(&self) -> std::io::Result<()> {
        for disk in &self.disks {
            disk.release().map_err(std::io::Error::other)?;
        }
        Ok(())
    }
}

fn open_tap(name: &str) -> Result<Tap, BackendError> {
    let Some(number) = name.strip_prefix("fd=") else {
        return Ok(Tap::open(name)?);
    };
    let bad = || BackendError::Descriptor(name.to_owned());
    let number: i32 = number.parse().ok().filter(|n| *n > 2).ok_or_else(bad)?;
    // SAFETY: F_GETFD on any number is harmless and tells whether it is open.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(bad());
    }
    // SAFETY: the descriptor is open; whoever started us gave it to us by naming it, and
    // names are unique in a spec.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    Ok(Tap::from_fd(fd)?)
}
