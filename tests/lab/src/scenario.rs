//! Runs scenarios one after the other in one lab, and shows what is needed to understand a failure.

use std::any::Any;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::{Lab, LabError, Settings, supervisor};

/// Lines of each console shown after a failure.
const TAIL_LINES: usize = 30;

/// How long a failed lab is kept for somebody who looks at it.
const KEPT_FOR: Duration = Duration::from_hours(2);

/// What a scenario gives back; any error will do, and so will a panic (`assert!`).
pub type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

/// One story told in the lab.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// What it shows, as words with underscores; its function's name.
    pub name: &'static str,
    /// How it goes.
    pub run: fn(&Lab) -> Outcome,
}

/// Makes a list of [`Scenario`]s from functions.
#[macro_export]
macro_rules! scenarios {
    ($($scenario:path),* $(,)?) => {
        &[$($crate::scenario::Scenario { name: stringify!($scenario), run: $scenario }),*]
    };
}

/// Starts a lab, runs the scenarios whose names contain one of the words on the command line (all
/// if there are none), and prints the counts. For the `main` of a test without harness.
pub fn run(settings: &Settings, scenarios: &[Scenario]) -> ExitCode {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let chosen: Vec<&Scenario> = scenarios
        .iter()
        .filter(|scenario| {
            words.is_empty() || words.iter().any(|word| scenario.name.contains(word))
        })
        .collect();
    if std::env::args().any(|word| word == "--list") {
        for scenario in &chosen {
            println!("{}: test", scenario.name);
        }
        return ExitCode::SUCCESS;
    }
    if chosen.is_empty() {
        return finish(0, 0, 0);
    }
    let lab = match Lab::start(settings) {
        Ok(lab) => lab,
        Err(LabError::Unavailable(why)) => {
            for scenario in &chosen {
                ground::skip_one(scenario.name, &why);
            }
            return finish(0, 0, chosen.len());
        }
        Err(error) => {
            println!("FAILED to start the lab: {error}");
            return finish(0, chosen.len(), 0);
        }
    };
    println!("lab of {} hosts: {:?}", lab.hosts().len(), lab.started());
    let keep = std::env::var_os("GODWIT_LAB_KEEP").is_some();
    let (mut passed, mut failed) = (0, 0);
    for scenario in chosen {
        let begun = Instant::now();
        let outcome =
            attempt(|| (scenario.run)(&lab)).and_then(|()| attempt(|| Ok(lab.restore()?)));
        let seconds = begun.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => {
                println!("ok      {:5.1} s  {}", seconds, scenario.name);
                passed += 1;
            }
            Err(why) => {
                println!("FAILED  {:5.1} s  {}: {why}", seconds, scenario.name);
                show(&lab);
                failed += 1;
                if keep {
                    break;
                }
                if let Err(why) = attempt(|| Ok(lab.restore()?)) {
                    println!("FAILED to restore the lab: {why}");
                    break;
                }
            }
        }
    }
    if failed > 0 && keep {
        println!(
            "the lab stays up: lab --name {0} exec ..., lab --name {0} down",
            settings.name
        );
        if let Err(error) = supervisor::serve(lab, &settings.name, KEPT_FOR) {
            println!("cannot keep the lab: {error}");
        }
    }
    finish(passed, failed, 0)
}

fn attempt(act: impl FnOnce() -> Outcome) -> Result<(), String> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(panic) => Err(message(&*panic)),
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without words").to_owned()
}

fn show(lab: &Lab) {
    lab.collect_logs();
    for host in lab.all() {
        println!(
            "--- console of {} (last {TAIL_LINES} lines)\n{}",
            host.name,
            host.console_tail(TAIL_LINES)
        );
    }
    println!("--- all consoles and logs: {}", lab.directory().display());
}

fn finish(passed: usize, failed: usize, skipped: usize) -> ExitCode {
    println!("\n{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
