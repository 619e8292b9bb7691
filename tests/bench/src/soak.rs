//! `bench soak`: thousands of migrations of probe guests between our own processes, some
//! cancelled, some with a side killed and some with a connection cut at a random moment. After each,
//! exactly one side runs the guest (none, where a kill took it along or nobody can know), and every
//! page holds what it must.

mod sides;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use link::Link;
use shared_storage::trust::Authority;
use vmm_core::migration::{Phase, Progress};

use crate::stats::Sample;
use sides::Side;

/// A guest's processors, and what they may be doing; the next one is begun when a kill took the
/// last along.
const SETTINGS: [(u32, &str); 3] = [
    (1, "fill_mib=1"),
    (1, "fill_mib=16 hot_mib=4 rate_mib_s=50"),
    (2, "fill_mib=24 hot_mib=16 rate_mib_s=max"),
];
/// So often in a row a probe is started that does not come to its work.
const BOOTS_MAX: u32 = 3;
/// Nothing that is waited for takes longer.
const LIMIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(1);
/// A target beside a source that runs the guest has so long to say that it does, too.
const UNCALLED: Duration = Duration::from_millis(100);
/// Acts come within this share of the time that the last undisturbed migration took.
const BEYOND_THE_END: f64 = 1.3;
/// Shares of all migrations, in per cent.
const CANCELLED_PERCENT: u64 = 25;
const TARGET_KILLED_PERCENT: u64 = 10;
const SOURCE_KILLED_PERCENT: u64 = 10;
const CUT_PERCENT: u64 = 15;
const TLS_PERCENT: u64 = 25;
/// The control connection of a move, and those for memory that it has here.
const CONNECTIONS: u64 = 3;

/// What disturbs a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Nothing,
    Cancel,
    KillTarget,
    KillSource,
    /// A connection, by its number.
    Cut(usize),
}

/// What was seen.
#[derive(Default)]
struct Counts {
    moved: u64,
    stayed: u64,
    lost: u64,
    cancels: u64,
    kills: u64,
    cuts: u64,
    over_tls: u64,
    not_started: u64,
    blackout_ms: Times,
    cancel_ms: Times,
    cut_ms: Times,
}

/// Times of migrations that compare all memory at the switch-over, which has the guest stand still
/// for longer, and of those that do not.
#[derive(Default)]
struct Times {
    plain: Sample,
    comparing: Sample,
}

impl Times {
    fn of(&mut self, compares: bool) -> &mut Sample {
        if compares {
            &mut self.comparing
        } else {
            &mut self.plain
        }
    }
}

/// xorshift64: the same seed draws the same acts.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }

    fn act(&mut self) -> Act {
        const TARGET: u64 = CANCELLED_PERCENT + TARGET_KILLED_PERCENT;
        const SOURCE: u64 = TARGET + SOURCE_KILLED_PERCENT;
        const CUT: u64 = SOURCE + CUT_PERCENT;
        match self.below(100) {
            0..CANCELLED_PERCENT => Act::Cancel,
            CANCELLED_PERCENT..TARGET => Act::KillTarget,
            TARGET..SOURCE => Act::KillSource,
            SOURCE..CUT => Act::Cut(self.below(CONNECTIONS) as usize),
            _ => Act::Nothing,
        }
    }
}

/// How much of it.
pub struct Wish {
    /// Migrations.
    pub moves: u64,
    /// Of the acts and their moments.
    pub seed: u64,
    /// Our binary.
    pub vmm: PathBuf,
}

/// Move guests to and fro; what was seen, in words.
pub fn run(wish: &Wish) -> Result<String, String> {
    let dir = tempfile::tempdir().map_err(|error| format!("cannot make a directory: {error}"))?;
    let kernel = dir.path().join("probe");
    std::fs::write(&kernel, probe::IMAGE)
        .map_err(|error| format!("cannot write the probe: {error}"))?;
    let tls_dir = certificates(dir.path())?;
    println!("bench soak --moves {} --seed {}", wish.moves, wish.seed);
    let began = Instant::now();
    let mut soak = Soak {
        vmm: &wish.vmm,
        kernel: &kernel,
        tls_dir: &tls_dir,
        random: Random(wish.seed | 1),
        usual: Duration::from_millis(100),
        counts: Counts::default(),
    };
    let mut source = None;
    for number in 1..=wish.moves {
        let act = soak.random.act();
        let longest_us = soak.usual.mul_f64(BEYOND_THE_END).as_micros() as u64;
        let moment = Duration::from_micros(soak.random.below(longest_us));
        source = soak
            .one(source, act, moment)
            .map_err(|why| format!("migration {number} ({act:?} after {moment:?}): {why}"))?;
    }
    Ok(soak.counts.words(wish, began.elapsed()))
}

/// Of a host, by an authority of its own.
fn certificates(dir: &Path) -> Result<PathBuf, String> {
    let tls_dir = dir.join("a");
    Authority::open_or_create(dir)
        .and_then(|authority| authority.mint("a"))
        .and_then(|identity| identity.write(&tls_dir))
        .map_err(|error| error.to_string())?;
    Ok(tls_dir)
}

struct Soak<'a> {
    vmm: &'a Path,
    kernel: &'a Path,
    tls_dir: &'a Path,
    random: Random,
    usual: Duration,
    counts: Counts,
}

impl Soak<'_> {
    /// One migration; who has the guest afterwards.
    fn one(
        &mut self,
        source: Option<Side>,
        act: Act,
        moment: Duration,
    ) -> Result<Option<Side>, String> {
        let mut source = if let Some(source) = source {
            source
        } else {
            self.boot()?
        };
        let over_tls = self.random.below(100) < TLS_PERCENT;
        let tls_dir = over_tls.then_some(self.tls_dir);
        self.counts.over_tls += u64::from(over_tls);
        let mut target = Side::receive(self.vmm, tls_dir)?;
        // Only what is to be cut goes the slower way.
        let link = matches!(act, Act::Cut(_)).then(|| link_to(&target));
        let link = link.transpose()?;
        let to = link.as_ref().map(|link| link.address().to_string());
        let began = Instant::now();
        let compares = self.random.below(2) == 0;
        source.migrate_to(to.as_deref().unwrap_or(&target.address), compares, tls_dir)?;
        thread::sleep(moment.saturating_sub(began.elapsed()));
        match act {
            Act::Nothing => {}
            Act::Cancel => self.cancel(&source, compares)?,
            Act::KillTarget => target.kill(),
            Act::KillSource => source.kill(),
            Act::Cut(connection) => self.cut(&source, link.as_ref(), connection, compares)?,
        }
        let last = follow(&source)?;
        if let (Act::Nothing, Some(summary)) = (act, last.as_ref().and_then(|l| l.summary.as_ref()))
        {
            self.usual = began.elapsed();
            self.counts
                .blackout_ms
                .of(compares)
                .push(summary.guest_blackout_us as f64 / 1000.0);
        }
        self.settle(act, source, target, last.map(|last| last.phase))
    }

    /// A guest that runs. That a probe does not start on a busy machine is told, and no concern
    /// of a migration's.
    fn boot(&mut self) -> Result<Side, String> {
        let mut last = String::new();
        for _ in 0..BOOTS_MAX {
            let which = self.random.below(SETTINGS.len() as u64) as usize;
            let (cpus, settings) = SETTINGS[which];
            match Side::boot(self.vmm, self.kernel, cpus, settings) {
                Ok(side) => return Ok(side),
                Err(why) => last = why,
            }
            self.counts.not_started += 1;
        }
        Err(last)
    }

    fn cancel(&mut self, source: &Side, compares: bool) -> Result<(), String> {
        let asked = Instant::now();
        source.cancel();
        let last = follow(source)?;
        if last.is_some_and(|last| last.phase == Phase::Failed) {
            source.wait_running()?;
            let took = asked.elapsed().as_secs_f64() * 1000.0;
            self.counts.cancel_ms.of(compares).push(took);
        }
        Ok(())
    }

    fn cut(
        &mut self,
        source: &Side,
        link: Option<&Link>,
        connection: usize,
        compares: bool,
    ) -> Result<(), String> {
        // The move may not have got so far, or be over.
        let was_there = link.is_some_and(|link| link.cut(connection));
        let cut = Instant::now();
        let last = follow(source)?;
        if was_there && last.is_some_and(|last| last.phase == Phase::Failed) {
            source.wait_running()?;
            let took = cut.elapsed().as_secs_f64() * 1000.0;
            self.counts.cut_ms.of(compares).push(took);
        }
        Ok(())
    }

    /// Exactly one side has the guest, or none for a reason.
    fn settle(
        &mut self,
        act: Act,
        source: Side,
        mut target: Side,
        phase: Option<Phase>,
    ) -> Result<Option<Side>, String> {
        match act {
            Act::Nothing => {}
            Act::Cancel => self.counts.cancels += 1,
            Act::KillTarget | Act::KillSource => self.counts.kills += 1,
            Act::Cut(_) => self.counts.cuts += 1,
        }
        let here = source.runs();
        // It answers only once a guest is there. One that gets none ends, unless nobody called.
        let there = if here {
            target.runs_within(UNCALLED)
        } else {
            target.runs()
        };
        // Cut between the commit and the word that it runs.
        let unknown = matches!(act, Act::Cut(_)) && phase == Some(Phase::Uncertain);
        let keeper = match (here, there) {
            (true, true) => return Err("both sides run it".to_owned()),
            (true, false) => {
                self.counts.stayed += 1;
                source
            }
            (false, true) => {
                self.counts.moved += 1;
                target
            }
            (false, false) if matches!(act, Act::KillTarget | Act::KillSource) || unknown => {
                self.counts.lost += 1;
                return Ok(None);
            }
            (false, false) => return Err(format!("nobody runs it; the source says {phase:?}")),
        };
        if act == Act::Nothing && here {
            return Err("it stayed though nothing was in its way".to_owned());
        }
        keeper.verify()?;
        Ok(Some(keeper))
    }
}

fn link_to(target: &Side) -> Result<Link, String> {
    let to: SocketAddr = target
        .address
        .parse()
        .map_err(|error| format!("{}: {error}", target.address))?;
    Link::to(to, None).map_err(|error| format!("cannot make a link to {to}: {error}"))
}

/// Until it is over; `None` when the source has ended.
fn follow(source: &Side) -> Result<Option<Progress>, String> {
    let give_up = Instant::now() + LIMIT;
    while let Some(progress) = source.progress() {
        if matches!(
            progress.phase,
            Phase::Done | Phase::Failed | Phase::Uncertain
        ) {
            return Ok(Some(progress));
        }
        if Instant::now() > give_up {
            return Err(format!("it does not end: {progress:?}"));
        }
        thread::sleep(POLL);
    }
    Ok(None)
}

impl Counts {
    fn words(&self, wish: &Wish, took: Duration) -> String {
        let mut words = format!(
            "{} migrations in {:.0} s, seed {}: {} moved, {} stayed, {} lost with a killed side \
             or where nobody can know; {} cancels, {} kills, {} connections cut, {} over TLS; never two sides, every page verified; {} probes did not start\n",
            wish.moves,
            took.as_secs_f64(),
            wish.seed,
            self.moved,
            self.stayed,
            self.lost,
            self.cancels,
            self.kills,
            self.cuts,
            self.over_tls,
            self.not_started
        );
        let mut line = |name: &str, times: &Times| {
            for (sample, how) in [
                (&times.plain, ""),
                (&times.comparing, ", comparing all memory"),
            ] {
                let _ = writeln!(
                    words,
                    "{name}{how} ms: median {:.1}, p99 {:.1}, max {:.1}",
                    sample.median(),
                    sample.percentile(99),
                    sample.max()
                );
            }
        };
        line("blackout", &self.blackout_ms);
        line("cancel until it runs freely", &self.cancel_ms);
        line("lost connection until it runs freely", &self.cut_ms);
        words
    }
}
