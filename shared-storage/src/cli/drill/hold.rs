//! A host that has the lease, and its guest, who writes numbered blocks.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::super::{CliError, FOUND_WRONG};
use super::blocks::{BLOCK, BLOCK_LIMIT, Block, DISK, blocks};
use super::contend::claim_when_allowed;
use super::{POLL, Player, keeper, say};
use crate::datastore::Datastore;
use crate::error::StoreError;
use crate::gate::Gate;
use crate::guest_dir::GuestDir;
use crate::image::lock;
use crate::lease::{LeaseGate, Notice};

pub(super) fn hold(store: &Datastore, player: &Player) -> Result<ExitCode, CliError> {
    let keeper = keeper(store, player)?;
    let guest = store.guest(&player.guest)?;
    let held = claim_when_allowed(store, &keeper, &guest)?;
    let epoch = held.record().map_or(0, |record| record.epoch);
    say(&format!("holds epoch {epoch}"));
    let running = Arc::new(AtomicBool::new(false));
    let writer = Writer {
        gate: held.gate(),
        running: running.clone(),
        guest,
        epoch,
    };
    thread::spawn(move || {
        if let Err(error) = writer.run() {
            say(&format!("failed: {error}"));
            std::process::exit(1);
        }
    });
    for notice in held.notices() {
        running.store(notice == Notice::Run, Ordering::Release);
        match notice {
            Notice::Run => {
                say(&format!(
                    "run epoch {}",
                    held.record().map_or(0, |record| record.epoch)
                ));
            }
            Notice::Pause => say("pause"),
            Notice::Ended(ending) => {
                say(&format!("lost: {ending:?}"));
                return Ok(ExitCode::from(FOUND_WRONG));
            }
        }
    }
    Ok(ExitCode::FAILURE)
}

struct Writer {
    gate: Arc<LeaseGate>,
    running: Arc<AtomicBool>,
    guest: GuestDir,
    epoch: u64,
}

impl Writer {
    fn run(&self) -> Result<(), StoreError> {
        let path = self.guest.disk_under(DISK, self.epoch)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
            .open(&path)
            .map_err(StoreError::io("open", &path))?;
        while !lock::take(&file, lock::Kind::Exclusive).map_err(StoreError::io("lock", &path))? {
            thread::sleep(POLL);
        }
        let mut number = blocks(&file).map_err(StoreError::io("read", &path))?.len() as u64;
        say(&format!("writes {} from block {number}", path.display()));
        while number < BLOCK_LIMIT {
            if !self.running.load(Ordering::Acquire) || self.gate.pass().is_err() {
                thread::sleep(POLL);
                continue;
            }
            let block = Block::new(number, self.epoch);
            file.write_all_at(&block.0, number * BLOCK as u64)
                .map_err(StoreError::io("write", &path))?;
            // Answered after the gate shut: it may have gone to a disk that was cloned away.
            if self.gate.pass().is_err() {
                continue;
            }
            say(&format!("acked {number} {}", self.epoch));
            number += 1;
        }
        Ok(())
    }
}
