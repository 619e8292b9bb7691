//! Numbered blocks with a checksum, as a guest writes them, and whether they are all there.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::super::{CliError, FOUND_WRONG};
use crate::error::StoreError;
use crate::guest_dir::GuestDir;

pub(super) const DISK: &str = "drill.raw";
pub(super) const BLOCK: usize = 4096;
/// Magic, number, epoch, checksum.
const USED: usize = 28;
const MAGIC: [u8; 8] = *b"GWDRILL1";
/// No drill writes more than this.
pub(super) const BLOCK_LIMIT: u64 = 1 << 18;

/// The disk of the drill's guest, in the directory of the guest.
pub(super) fn make_disk(dir: &Path) -> Result<(), StoreError> {
    let disk = dir.join(DISK);
    let made = File::create_new(&disk).and_then(|file| file.set_len(BLOCK_LIMIT * BLOCK as u64));
    made.map_err(StoreError::io("create", disk))
}

#[repr(align(4096))]
pub(super) struct Block(pub(super) [u8; BLOCK]);

impl Block {
    pub(super) fn new(number: u64, epoch: u64) -> Self {
        let mut block = Self([0; BLOCK]);
        block.0[..8].copy_from_slice(&MAGIC);
        block.0[8..16].copy_from_slice(&number.to_le_bytes());
        block.0[16..24].copy_from_slice(&epoch.to_le_bytes());
        let sum = crc32c::crc32c(&block.0[..24]);
        block.0[24..USED].copy_from_slice(&sum.to_le_bytes());
        block
    }

    /// The epoch under which block `number` was written, if it is one.
    fn epoch(&self, number: u64) -> Option<u64> {
        let word = |at: usize| self.0[at..at + 8].try_into().map(u64::from_le_bytes);
        let epoch = word(16).ok()?;
        (self.0 == Self::new(number, epoch).0).then_some(epoch)
    }
}

/// The epochs of all blocks up to the first that is none.
pub(super) fn blocks(file: &File) -> io::Result<Vec<u64>> {
    let mut epochs = Vec::new();
    let mut block = Block([0; BLOCK]);
    for number in 0..BLOCK_LIMIT {
        file.read_exact_at(&mut block.0, number * BLOCK as u64)?;
        let Some(epoch) = block.epoch(number) else {
            break;
        };
        epochs.push(epoch);
    }
    Ok(epochs)
}

pub(super) fn verify(guest: &GuestDir, acked: &[PathBuf]) -> Result<ExitCode, CliError> {
    let path = guest.disk(DISK)?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .map_err(StoreError::io("open", &path))?;
    let epochs = blocks(&file).map_err(StoreError::io("read", &path))?;
    let mut wrong = Vec::new();
    for (number, pair) in epochs.windows(2).enumerate() {
        if pair[1] < pair[0] {
            wrong.push(format!(
                "block {} of epoch {} follows epoch {}",
                number + 1,
                pair[1],
                pair[0]
            ));
        }
    }
    let mut acks = 0;
    for path in acked {
        let text = fs::read_to_string(path).map_err(StoreError::io("read", path))?;
        for line in text.lines() {
            let words: Vec<_> = line.split(' ').collect();
            let [_, "acked", number, epoch] = words[..] else {
                continue;
            };
            let (Ok(number), Ok(epoch)) = (number.parse::<usize>(), epoch.parse::<u64>()) else {
                continue;
            };
            acks += 1;
            if epochs.get(number) != Some(&epoch) {
                let found = epochs.get(number);
                wrong.push(format!(
                    "block {number} was acked in epoch {epoch}, found {found:?}"
                ));
            }
        }
    }
    let mut in_order = epochs.clone();
    in_order.dedup();
    println!(
        "{} blocks in epochs {in_order:?}, {acks} acknowledged ones checked",
        epochs.len()
    );
    for line in &wrong {
        println!("WRONG {line}");
    }
    Ok(if wrong.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FOUND_WRONG)
    })
}
