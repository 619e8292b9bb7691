//! Running many histories, and replaying the one that failed.

use std::fmt;
use std::num::NonZero;
use std::process::ExitCode;

/// Histories that a thread runs before it reports.
const CHUNK: u64 = 64;

/// Which histories to run: seeds `seed`, `seed + 1`, ... `histories` of them.
#[derive(Debug, Clone, clap::Args)]
pub struct Span {
    /// Seed of the first history.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How many histories to run, each with the next seed.
    #[arg(long, default_value_t = 1000)]
    pub histories: u64,
    /// Print every event (always done when replaying a single history).
    #[arg(long)]
    pub trace: bool,
}

/// What a history went through, printed when it fails.
#[derive(Debug, Default)]
pub struct Trace {
    on: bool,
}

impl Trace {
    /// A trace that prints its lines as they come.
    pub fn printing() -> Self {
        Self { on: true }
    }

    /// Notes an event; `line` is only built when somebody reads it.
    pub fn note(&mut self, at_us: u64, line: impl FnOnce() -> String) {
        if self.on {
            println!(
                "{:>9}.{:06} {}",
                at_us / 1_000_000,
                at_us % 1_000_000,
                line()
            );
        }
    }
}

/// An invariant that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// True time at which it broke.
    pub at_us: u64,
    /// What broke, in words.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "at {}.{:06} s: {}",
            self.at_us / 1_000_000,
            self.at_us % 1_000_000,
            self.what
        )
    }
}

/// The first history that broke an invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// What broke.
    pub violation: Violation,
}

/// Runs the histories one after the other until one breaks an invariant.
///
/// `one` runs the history of a seed; `sum` receives what each history counted.
pub fn run<T>(
    span: &Span,
    mut one: impl FnMut(u64, &mut Trace) -> Result<T, Violation>,
    mut sum: impl FnMut(T),
) -> Result<(), Failure> {
    let mut trace = if span.trace || span.histories == 1 {
        Trace::printing()
    } else {
        Trace::default()
    };
    for seed in span.seed..span.seed.saturating_add(span.histories) {
        sum(one(seed, &mut trace).map_err(|violation| Failure { seed, violation })?);
    }
    Ok(())
}

/// As [`run`] on every core of the machine. The failure of the lowest seed is given, so that
/// the answer is the same on every machine.
pub fn run_parallel<T: Send>(
    span: &Span,
    one: impl Fn(u64, &mut Trace) -> Result<T, Violation> + Sync,
    mut sum: impl FnMut(T),
) -> Result<(), Failure> {
    if span.trace || span.histories <= CHUNK {
        return run(span, one, sum);
    }
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let end = span.seed.saturating_add(span.histories);
    for batch in (span.seed..end).step_by((CHUNK * cores) as usize) {
        let chunk = |core: u64| {
            let first = (batch + core * CHUNK).min(end);
            let last = (first + CHUNK).min(end);
            let seeds = first..last;
            seeds
                .map(|seed| (seed, one(seed, &mut Trace::default())))
                .collect::<Vec<_>>()
        };
        let chunk = &chunk;
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..cores)
                .map(|core| scope.spawn(move || chunk(core)))
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().expect("a history panicked"))
                .collect()
        });
        for (seed, result) in results {
            sum(result.map_err(|violation| Failure { seed, violation })?);
        }
    }
    Ok(())
}

/// Says how it went and how to replay a failure; `name` is the subcommand, with the options that
/// change its histories.
pub fn verdict(name: &str, span: &Span, result: &Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => {
            println!(
                "{name}: {} histories from seed {}: sound",
                span.histories, span.seed
            );
            ExitCode::SUCCESS
        }
        Err(Failure { seed, violation }) => {
            eprintln!("{name}: seed {seed} broke an invariant {violation}");
            eprintln!("replay: cargo run --release -p sim -- {name} --seed {seed} --histories 1");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_at_the_first_broken_history_and_names_its_seed() {
        let span = Span {
            seed: 10,
            histories: 100,
            trace: false,
        };
        let mut ran = 0;
        let one = |seed, _: &mut Trace| {
            if seed == 12 {
                Err(Violation {
                    at_us: 5,
                    what: "two owners".into(),
                })
            } else {
                Ok(1)
            }
        };
        let failure = run(&span, one, |n| ran += n).unwrap_err();
        assert_eq!((failure.seed, ran), (12, 2));
        assert_eq!(failure.violation.to_string(), "at 0.000005 s: two owners");
    }
}
