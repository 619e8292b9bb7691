//! The host's own clock and boot.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::time::{ClockId, clock_gettime};
use storage_core::name::check_name;
use storage_core::record::Incarnation;

use crate::error::StoreError;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// `CLOCK_BOOTTIME` in microseconds: it runs on while the host sleeps, and nobody sets it.
pub fn boottime_us() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// Random bytes from the kernel.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut filled = 0;
    // getrandom gives up to 256 bytes whole once the pool is ready; only a signal can split
    // the wait for that.
    while filled < N {
        if let Ok(got) =
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
        {
            filled += got;
        }
    }
    bytes
}

/// Who this host is, to its own processes and to the datastore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalHost {
    name: String,
    incarnation: Incarnation,
    run_dir: PathBuf,
}

impl LocalHost {
    /// The host called `name`. Its processes meet in `run_dir`, which must not outlive a boot
    /// and must be the same for all of them; [`DEFAULT_RUN_DIR`] unless several hosts are
    /// played on one machine.
    pub fn new(name: &str, run_dir: &Path) -> Result<Self, StoreError> {
        check_name(name).map_err(|source| StoreError::Name {
            name: name.into(),
            source,
        })?;
        let text = fs::read_to_string(BOOT_ID).map_err(StoreError::io("read", BOOT_ID))?;
        let incarnation = parse_boot_id(&text).ok_or_else(|| StoreError::Invalid {
            path: BOOT_ID.into(),
            why: format!("{text:?} is not a UUID"),
        })?;
        Ok(Self {
            name: name.into(),
            incarnation,
            run_dir: run_dir.into(),
        })
    }

    /// The same host after a reboot, for tests: another incarnation with another `run_dir`.
    #[must_use]
    pub fn rebooted(&self, run_dir: &Path) -> Self {
        Self {
            name: self.name.clone(),
            incarnation: Incarnation(random()),
            run_dir: run_dir.into(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its boot.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Where its processes meet.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }
}

/// Where a host's processes meet unless told otherwise.
pub const DEFAULT_RUN_DIR: &str = "/run/godwit";

fn parse_boot_id(text: &str) -> Option<Incarnation> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    (digits.len() == 32).then_some(())?;
    let number = u128::from_str_radix(&digits, 16).ok()?;
    Some(Incarnation(number.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_id_is_a_uuid() {
        let parsed = parse_boot_id("00112233-4455-6677-8899-aabbccddeeff\n").unwrap();
        assert_eq!(parsed.to_string(), "00112233445566778899aabbccddeeff");
        assert_eq!(parse_boot_id("0011"), None);
        let host = LocalHost::new("a", Path::new("/tmp")).unwrap();
        assert_eq!(host, LocalHost::new("a", Path::new("/tmp")).unwrap());
        assert_ne!(host, host.rebooted(Path::new("/tmp")));
    }
}
