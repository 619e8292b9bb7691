//! The page that all processes of a host share: until when the host may act, and whose turn
//! it is to write the heartbeat.
//!
//! It lies in the host's run directory, made by whichever process comes first. Each field is
//! one atomic word, so that a process that dies between two of them leaves nothing torn.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use storage_core::beat::Pace;
use storage_core::hold::{Hold, TERM_COUNT};

use crate::atomic::{temporary, write_synced};
use crate::clock::{LocalHost, random};
use crate::error::StoreError;
use crate::lease::local::lock_until;

/// Another process may have the page locked for so long; it takes some milliseconds.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
const PAGE_BYTES: usize = 4096;
/// Magic and layout version.
const MAGIC: [u8; 8] = *b"GWPAGE01";
/// Words, by their place in the page. The header before them is the magic and the boot.
const HOLD: usize = 8;
const COUNTER: usize = 9;
const BEGUN: usize = 10;
const AGENT: usize = 11;
const ACKED: usize = 12;
const FLAGS: usize = 13;

/// The page, mapped.
#[derive(Debug)]
pub struct Page {
    words: NonNull<AtomicU64>,
    path: PathBuf,
}

// SAFETY: the mapping lives as long as the value, and is only reached through atomics.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    /// Maps the page of `host` in this cluster, making it when this is the first process of
    /// this boot that asks.
    pub fn open(host: &LocalHost, cluster: [u8; 16]) -> Result<Self, StoreError> {
        let dir = host
            .run_dir()
            .join(format!("{:032x}", u128::from_be_bytes(cluster)));
        fs::create_dir_all(&dir).map_err(StoreError::io("create", &dir))?;
        let path = dir.join(format!("{}.page", host.name()));
        let lock_path = dir.join(format!("{}.lock", host.name()));
        let lock = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(StoreError::io("open", &lock_path))?;
        if !lock_until(&lock, &lock_path, Instant::now() + LOCK_LIMIT)? {
            let stands_still = io::Error::other("a process that holds it stands still; end it");
            return Err(StoreError::io("lock", &lock_path)(stands_still));
        }
        let file = match open_valid(&path, host) {
            Some(file) => file,
            None => make(&path, host)?,
        };
        Self::map(&file, path)
    }

    fn map(file: &File, path: PathBuf) -> Result<Self, StoreError> {
        // SAFETY: a fresh shared mapping of a file we checked to be a page long; nobody
        // truncates it, it is only ever replaced by renaming another over it.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                PAGE_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        };
        let address = address.map_err(|error| StoreError::io("map", &path)(error.into()))?;
        let words = NonNull::new(address.cast::<AtomicU64>())
            .ok_or_else(|| StoreError::Missing(path.clone()))?;
        Ok(Self { words, path })
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        debug_assert!(index < PAGE_BYTES / size_of::<u64>());
        // SAFETY: inside the mapping, aligned, and only ever used as an atomic.
        unsafe { self.words.add(index).as_ref() }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Until when the host may act.
    pub fn hold(&self) -> Hold {
        Hold::from_word(self.word(HOLD).load(Ordering::Acquire))
    }

    /// Storage acknowledged, at `now_us`, the heartbeat sent at `sent_us`.
    pub fn acknowledge(&self, sent_us: u64, now_us: u64, reach_us: u64) {
        let extend = |word| {
            Some(
                Hold::from_word(word)
                    .after_ack(sent_us, now_us, reach_us)
                    .to_word(),
            )
        };
        // The closure always gives a word, so that the update cannot fail.
        let _ = self
            .word(HOLD)
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, extend);
        self.word(ACKED).fetch_max(now_us, Ordering::AcqRel);
    }

    /// When the last heartbeat was acknowledged; 0 if none was.
    pub fn acked_us(&self) -> u64 {
        self.word(ACKED).load(Ordering::Acquire)
    }

    /// Whose turn it is.
    pub fn pace(&self) -> Pace {
        Pace {
            begun_us: self.word(BEGUN).load(Ordering::Acquire),
            agent_us: self.word(AGENT).load(Ordering::Acquire),
        }
    }

    /// Takes the turn that was due when `pace` was read; gives the heartbeat's number, none
    /// when another process was faster.
    pub fn take_turn(&self, pace: Pace, now_us: u64, is_agent: bool) -> Option<u64> {
        self.word(BEGUN)
            .compare_exchange(pace.begun_us, now_us, Ordering::AcqRel, Ordering::Acquire)
            .ok()?;
        if is_agent {
            self.word(AGENT).store(now_us, Ordering::Release);
        }
        Some(self.word(COUNTER).fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// The number of the last heartbeat that a process of this host began to write.
    pub fn counter(&self) -> u64 {
        self.word(COUNTER).load(Ordering::Acquire)
    }

    /// What the agent says about the host in every heartbeat.
    pub fn flags(&self) -> u32 {
        self.word(FLAGS).load(Ordering::Acquire) as u32
    }

    /// Sets what the agent says about the host.
    pub fn set_flags(&self, flags: u32) {
        self.word(FLAGS).store(u64::from(flags), Ordering::Release);
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length, and not used any more.
        let unmapped = unsafe { munmap(self.words.as_ptr().cast(), PAGE_BYTES) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

fn header(host: &LocalHost) -> [u8; 24] {
    let mut header = [0; 24];
    header[..8].copy_from_slice(&MAGIC);
    header[8..].copy_from_slice(&host.incarnation().0);
    header
}

/// The page if it is whole and of this boot.
fn open_valid(path: &Path, host: &LocalHost) -> Option<File> {
    let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
    let mut found = [0; 24];
    file.read_exact_at(&mut found, 0).ok()?;
    let whole = file.metadata().ok()?.len() == PAGE_BYTES as u64;
    (whole && found == header(host)).then_some(file)
}

fn make(path: &Path, host: &LocalHost) -> Result<File, StoreError> {
    let mut bytes = vec![0; PAGE_BYTES];
    bytes[..24].copy_from_slice(&header(host));
    // A random first term: were the page removed by mistake and made again within one boot,
    // leases of the page before must not look as if they belonged to this one.
    let term = u32::from_le_bytes(random()) % TERM_COUNT;
    let word = Hold::expired(term).to_word().to_le_bytes();
    bytes[HOLD * 8..HOLD * 8 + 8].copy_from_slice(&word);
    let fresh = temporary(path);
    write_synced(&fresh, &bytes)?;
    fs::rename(&fresh, path).map_err(StoreError::io("create", path))?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(StoreError::io("open", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(dir: &Path) -> LocalHost {
        LocalHost::new("a", dir).unwrap()
    }

    #[test]
    fn all_processes_of_a_boot_share_it_and_a_reboot_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path());
        let one = Page::open(&host, [1; 16]).unwrap();
        let other = Page::open(&host, [1; 16]).unwrap();
        assert!(!one.hold().is_live(1));
        one.acknowledge(1000, 2000, 1_000_000);
        assert!(other.hold().is_live(500_000));
        assert_eq!(other.acked_us(), 2000);
        let rebooted = Page::open(&host.rebooted(dir.path()), [1; 16]).unwrap();
        assert!(!rebooted.hold().is_live(500_000));
        assert!(one.hold().is_live(500_000), "the old mapping stays whole");
    }

    #[test]
    fn a_turn_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let page = Page::open(&host(dir.path()), [1; 16]).unwrap();
        let pace = page.pace();
        let numbers: Vec<_> = std::thread::scope(|scope| {
            let takers: Vec<_> = (1..9)
                .map(|n| {
                    scope.spawn({
                        let page = &page;
                        move || page.take_turn(pace, n, n == 1)
                    })
                })
                .collect();
            takers
                .into_iter()
                .filter_map(|taker| taker.join().unwrap())
                .collect()
        });
        assert_eq!(numbers, [1]);
    }

    #[test]
    fn a_damaged_page_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = Page::open(&host(dir.path()), [1; 16])
            .unwrap()
            .path()
            .to_owned();
        fs::write(&path, "rubbish").unwrap();
        assert!(
            !Page::open(&host(dir.path()), [1; 16])
                .unwrap()
                .hold()
                .is_live(1)
        );
    }
}
