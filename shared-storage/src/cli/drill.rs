//! Playing a host: holds a lease and writes numbered blocks under it, or races for it. The
//! lab puts real hosts, real storage and real faults around this.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::{CliError, FOUND_WRONG};
use crate::clock::{DEFAULT_RUN_DIR, LocalHost, boottime_us};
use crate::datastore::Datastore;
use crate::error::StoreError;
use crate::gate::Gate;
use crate::guest_dir::GuestDir;
use crate::image::lock;
use crate::keeper::{Keeper, Role};
use crate::lease::{HeldLease, LeaseGate, Notice};
use crate::watcher::Watcher;

const PATIENCE: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(10);
const DISK: &str = "drill.raw";
const BLOCK: usize = 4096;
/// Magic, number, epoch, checksum.
const USED: usize = 28;
const MAGIC: [u8; 8] = *b"GWDRILL1";
/// No drill writes more than this.
const BLOCK_LIMIT: u64 = 1 << 18;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Drill {
    /// Make the guest for the others.
    Prepare {
        /// The guest.
        guest: String,
    },
    /// Claim the lease as soon as that is allowed, and write numbered blocks under it until it
    /// is lost. Says every event in one line.
    Hold(Player),
    /// Claim and release in competition with others until the lease has seen enough epochs.
    Race {
        #[command(flatten)]
        player: Player,
        /// Stop at this epoch.
        #[arg(long, default_value_t = 2000)]
        epochs: u64,
    },
    /// Look at the blocks: all there, and never an older epoch after a newer one.
    Verify {
        /// The guest.
        guest: String,
        /// Lines `acked NUMBER EPOCH` that `hold` said.
        #[arg(long)]
        acked: Vec<PathBuf>,
    },
    /// Keep this host's heartbeat going without an agent, as a guest's process does.
    Beat(Player),
}

#[derive(Debug, clap::Args)]
pub(super) struct Player {
    /// The guest.
    guest: String,
    /// The host to be.
    #[arg(long)]
    host: String,
    /// Where the host's processes meet.
    #[arg(long, default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// Beat as a guest's process, which steps in for a silent agent.
    #[arg(long)]
    as_guest: bool,
}

pub(super) fn run(store: &Datastore, drill: &Drill) -> Result<ExitCode, CliError> {
    match drill {
        Drill::Prepare { guest } => {
            store.create_guest(guest, &toml::Table::new(), |dir| {
                let disk = dir.join(DISK);
                let made = File::create_new(&disk)
                    .and_then(|file| file.set_len(BLOCK_LIMIT * BLOCK as u64));
                made.map_err(StoreError::io("create", disk))
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Drill::Hold(player) => hold(store, player),
        Drill::Race { player, epochs } => race(store, player, *epochs),
        Drill::Verify { guest, acked } => verify(&store.guest(guest)?, acked),
        Drill::Beat(player) => {
            let keeper = keeper(store, player)?;
            say(&format!("beats as {}", keeper.host().name()));
            loop {
                thread::park();
            }
        }
    }
}

/// One line, with the host's own clock.
fn say(what: &str) {
    println!("{:.3} {what}", boottime_us() as f64 / 1e6);
}

fn keeper(store: &Datastore, player: &Player) -> Result<Keeper, StoreError> {
    let host = LocalHost::new(&player.host, &player.run_dir)?;
    let role = if player.as_guest {
        Role::Guest
    } else {
        Role::Agent
    };
    let keeper = Keeper::start(store, &host, role)?;
    keeper.wait_live(PATIENCE)?;
    Ok(keeper)
}

fn hold(store: &Datastore, player: &Player) -> Result<ExitCode, CliError> {
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

/// Adopts what is ours, claims what is free, and watches who holds it until it is silent.
fn claim_when_allowed(
    store: &Datastore,
    keeper: &Keeper,
    guest: &GuestDir,
) -> Result<HeldLease, StoreError> {
    let mut watcher = Watcher::new(store, keeper);
    let mut seen = guest.lease().look()?;
    loop {
        let holder = seen.last.as_ref().and_then(|last| last.holder.as_ref());
        if holder.is_some_and(|holder| holder.same_boot(&keeper.holder())) {
            return HeldLease::adopt(keeper, guest.lease(), guest.fence()?, PATIENCE);
        }
        if let Some(holder) = holder {
            watcher.watch(&holder.host)?;
        }
        let fence = guest.fence()?;
        match HeldLease::claim(
            keeper,
            guest.lease(),
            &seen,
            Some(&watcher),
            fence,
            PATIENCE,
        ) {
            Err(StoreError::Held { .. } | StoreError::Refused { .. }) => thread::sleep(POLL),
            claimed => return claimed,
        }
        // The time of the first sight counts as long as nothing changes.
        let now = guest.lease().look()?;
        if now.last != seen.last {
            seen = now;
        }
    }
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

#[repr(align(4096))]
struct Block([u8; BLOCK]);

impl Block {
    fn new(number: u64, epoch: u64) -> Self {
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
fn blocks(file: &File) -> io::Result<Vec<u64>> {
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

fn race(store: &Datastore, player: &Player, epochs: u64) -> Result<ExitCode, CliError> {
    let keeper = keeper(store, player)?;
    let guest = store.guest(&player.guest)?;
    loop {
        let seen = guest.lease().look()?;
        if seen.last.as_ref().is_some_and(|last| last.epoch >= epochs) {
            return Ok(ExitCode::SUCCESS);
        }
        match HeldLease::claim(&keeper, guest.lease(), &seen, None, None, PATIENCE) {
            Ok(held) => {
                say(&format!(
                    "won {}",
                    held.record().map_or(0, |record| record.epoch)
                ));
                held.release(PATIENCE)?;
            }
            // Another has it, or was faster.
            Err(StoreError::Held { .. } | StoreError::Refused { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn verify(guest: &GuestDir, acked: &[PathBuf]) -> Result<ExitCode, CliError> {
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
