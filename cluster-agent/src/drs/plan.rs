//! `godwit drs plan`: what DRS would do with a cluster described in a file. Needs no agent.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use cluster_core::balance::{Balance, Measure, Plan};
use cluster_core::model::Resources;
use cluster_core::score::Assessment;
use cluster_core::settings::{AdmissionPolicy, Enforcement};
use cluster_core::whatif::{Changes, Forecast, InventoryFile, WhatIfError, what_if};
use thiserror::Error;

use super::clauses::clauses;
use crate::cli::table::percent;

/// The largest inventory that is read.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Plan for an inventory from a file, offline.
#[derive(Debug, Args)]
pub struct PlanArguments {
    /// The inventory (JSON; docs/drs.md describes it).
    #[arg(long)]
    pub inventory: PathBuf,
    /// What to make smaller.
    #[arg(long, value_enum, default_value_t = MeasureName::Waiting)]
    pub objective: MeasureName,
    /// 1 (conservative) to 5 (eager), 3 if not said; only for the objective waiting: spread has
    /// Ganeti's bar.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub threshold: Option<u8>,
    /// No more steps than this.
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_steps: u32,
    /// Migrations at a time in the whole cluster.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub at_once: u32,
    /// Migrations at a time into or out of one host.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub at_once_per_host: u32,
    /// Migrations at a time between two hosts, both ways together.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub at_once_per_link: u32,
    /// Host failures that must always be survived; 0 turns admission control off.
    #[arg(long, default_value_t = 1)]
    pub tolerate: u32,
    /// What if there were one more host: NAME, or NAME=CORES:MEMORY_MIB.
    #[arg(long, value_parser = parse_host)]
    pub add_host: Vec<(String, Option<Resources>)>,
    /// What if this host failed.
    #[arg(long)]
    pub lose_host: Vec<String>,
    /// What if this host were emptied.
    #[arg(long)]
    pub drain: Vec<String>,
}

/// The names of [`Measure`].
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum MeasureName {
    /// Demand that has to wait.
    Waiting,
    /// Ganeti's: unequal shares of configured memory and cores.
    Spread,
}

/// Why there is no plan.
#[derive(Debug, Error)]
pub enum PlanError {
    /// The file cannot be read.
    #[error(
        "cannot read the inventory {path}: {source}; name a JSON file that docs/drs.md describes"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what docs/drs.md describes.
    #[error("cannot understand the inventory {path}: {source}; docs/drs.md describes it")]
    Understand {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// It contradicts itself or the question.
    #[error(transparent)]
    WhatIf(#[from] WhatIfError),
    /// A threshold means nothing for this objective.
    #[error(
        "--threshold is for --objective waiting; spread has Ganeti's bar: leave one of them out"
    )]
    NoThreshold,
    /// The answer cannot be written as JSON.
    #[error("cannot write the plan as JSON: {0}")]
    Write(serde_json::Error),
}

/// `NAME` or `NAME=CORES:MEMORY_MIB`.
fn parse_host(text: &str) -> Result<(String, Option<Resources>), String> {
    let Some((name, size)) = text.split_once('=') else {
        return named(text).map(|name| (name, None));
    };
    let wrong = || "write it as NAME or NAME=CORES:MEMORY_MIB".to_owned();
    let (cores, memory_mib) = size.split_once(':').ok_or_else(wrong)?;
    let cores: u64 = cores.parse().map_err(|_| wrong())?;
    let memory_mib = memory_mib.parse().map_err(|_| wrong())?;
    let size = Resources::new(cores.saturating_mul(1000), memory_mib);
    named(name).map(|name| (name, Some(size)))
}

fn named(name: &str) -> Result<String, String> {
    if name.is_empty() {
        return Err("the host needs a name".to_owned());
    }
    Ok(name.to_owned())
}

/// Plans; answers what to print.
pub fn report(arguments: &PlanArguments, json: bool) -> Result<String, PlanError> {
    if arguments.threshold.is_some() && matches!(arguments.objective, MeasureName::Spread) {
        return Err(PlanError::NoThreshold);
    }
    let file = read(&arguments.inventory)?;
    let changes = Changes {
        add: arguments.add_host.clone(),
        lose: arguments.lose_host.clone(),
        drain: arguments.drain.clone(),
    };
    let forecast = what_if(file.cluster()?, &changes, &arguments.settings())?;
    if json {
        return serde_json::to_string_pretty(&forecast).map_err(PlanError::Write);
    }
    Ok(text(&forecast))
}

impl PlanArguments {
    fn settings(&self) -> Balance {
        let usual = Balance::default();
        Balance {
            measure: match self.objective {
                MeasureName::Waiting => Measure::Waiting,
                MeasureName::Spread => Measure::Spread,
            },
            threshold: self.threshold.unwrap_or(usual.threshold),
            max_steps: self.max_steps,
            at_once: self.at_once,
            at_once_per_host: self.at_once_per_host,
            at_once_per_link: self.at_once_per_link,
            admission: match self.tolerate {
                0 => AdmissionPolicy::Off,
                failures => AdmissionPolicy::TolerateHostFailures(failures),
            },
            enforcement: Enforcement::Refuse,
            ..usual
        }
    }
}

fn read(path: &Path) -> Result<InventoryFile, PlanError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text))
        .map_err(|source| PlanError::Read {
            path: path.to_owned(),
            source,
        })?;
    serde_json::from_str(&text).map_err(|source| PlanError::Understand {
        path: path.to_owned(),
        source,
    })
}

/// For people. Writing to a string cannot fail, so its results are dropped.
fn text(forecast: &Forecast) -> String {
    let mut out = String::new();
    for restart in &forecast.restarts {
        let _ = match &restart.host {
            Some(host) => writeln!(
                out,
                "restart {} on {host}: {}",
                restart.guest, restart.because
            ),
            None => writeln!(
                out,
                "{} is not restarted: {}",
                restart.guest, restart.because
            ),
        };
    }
    steps(&mut out, &forecast.plan);
    for one in &forecast.plan.unresolved {
        let _ = writeln!(out, "cannot be mended: {}: {}", one.what, one.because);
    }
    assessments(&mut out, &forecast.plan);
    if !forecast.at_risk.is_empty() {
        let _ = writeln!(
            out,
            "admission control's promise is broken: {}",
            forecast.at_risk
        );
    }
    out
}

fn steps(out: &mut String, plan: &Plan) {
    if plan.steps.is_empty() {
        let _ = writeln!(out, "nothing to move");
    }
    for (wave, numbers) in (1..).zip(&plan.waves) {
        let _ = writeln!(out, "wave {wave}");
        for number in numbers {
            out.push_str(&clauses(*number as u64 + 1, &plan.steps[*number]));
        }
    }
}

fn assessments(out: &mut String, plan: &Plan) {
    let (moves, gib) = (plan.moves().count(), plan.memory_mib() / 1024);
    let noun = if moves == 1 { "move" } else { "moves" };
    let _ = writeln!(out, "{moves} {noun}, {gib} GiB");
    let row = |name: &str, of: &dyn Fn(&Assessment) -> String| {
        format!(
            "{name:<26} {:>12} {:>12}\n",
            of(&plan.before),
            of(&plan.after)
        )
    };
    let _ = writeln!(out, "{:<26} {:>12} {:>12}", "", "before", "after");
    out.push_str(&row("demand that is met", &|a| {
        percent(a.satisfied_permille)
    }));
    out.push_str(&row("imbalance of loads", &|a| {
        percent(a.imbalance_permille)
    }));
    out.push_str(&row("waiting, in cores", &|a| thousandths(a.waiting_mcpu)));
    out.push_str(&row("spread (Ganeti's)", &|a| {
        format!(
            "{}.{:06}",
            a.spread_ppm / 1_000_000,
            a.spread_ppm % 1_000_000
        )
    }));
    out.push_str(&row("guests that starve", &|a| {
        a.starving.len().to_string()
    }));
}

fn thousandths(milli: u64) -> String {
    format!("{}.{:03}", milli / 1000, milli % 1000)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        plan: PlanArguments,
    }

    const INVENTORY: &str = r#"{
        "version": 1,
        "hosts": {
            "hosta": {"cores": 8, "memory-mib": 16384},
            "hostb": {"cores": 8, "memory-mib": 16384}
        },
        "guests": {
            "db": {"host": "hosta", "cpus": 4, "memory-mib": 4096, "demand-mcpu": 3500, "active-mib": 1024},
            "web1": {"host": "hosta", "cpus": 4, "memory-mib": 2048, "demand-mcpu": 3000, "active-mib": 512},
            "web2": {"host": "hosta", "cpus": 4, "memory-mib": 2048, "demand-mcpu": 3000, "active-mib": 512}
        },
        "rules": {
            "webs": {"kind": "keep-apart", "guests": ["web1", "web2"]}
        }
    }"#;

    fn ask(inventory: &str, more: &[&str], json: bool) -> Result<String, PlanError> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("inventory.json");
        std::fs::write(&path, inventory).expect("the inventory is written");
        let mut words = vec!["plan", "--inventory", path.to_str().expect("UTF-8")];
        words.extend(more);
        report(&Line::parse_from(words).plan, json)
    }

    #[test]
    fn the_golden_example() {
        let text = ask(INVENTORY, &[], false).expect("a plan");
        let golden = "\
wave 1
   1. web1 from hosta to hostb: mends rule webs
      load   hosta 118.7 % to 81.2 %, hostb 0.0 % to 37.5 %
      gain   10.898 cores less waiting, for a cost of 0.012
      takes  about 2.1 s of migration (assumed: link 1000 MiB/s, no writes)
      obeys  webs
1 move, 2 GiB
                                 before        after
demand that is met               84.2 %      100.0 %
imbalance of loads               59.3 %       21.8 %
";
        assert!(text.starts_with(golden), "{text}");
    }

    #[test]
    fn what_if_a_host_failed_or_were_added_or_emptied() {
        let text = ask(INVENTORY, &["--lose-host", "hosta"], false).expect("a plan");
        assert!(text.contains("restart db on hostb"), "{text}");
        assert!(text.contains("web2 is not restarted"), "{text}");
        let more = ["--lose-host", "hosta", "--add-host", "hostc=16:65536"];
        let text = ask(INVENTORY, &more, false).expect("a plan");
        assert!(!text.contains("not restarted"), "{text}");
        let text = ask(INVENTORY, &["--drain", "hosta", "--tolerate", "0"], true).expect("a plan");
        let answer: Forecast = serde_json::from_str(&text).expect("our own JSON");
        assert_eq!(
            answer.plan.unresolved.len(),
            1,
            "the webs cannot both go to hostb"
        );
    }

    #[test]
    fn a_wrong_inventory_is_explained() {
        let wrong = INVENTORY.replace("\"cores\"", "\"coers\"");
        let error = ask(&wrong, &[], false).expect_err("is refused").to_string();
        assert!(
            error.contains("coers") && error.contains("docs/drs.md"),
            "{error}"
        );
        let error = ask(INVENTORY, &["--drain", "hostz"], false).expect_err("is refused");
        assert!(error.to_string().contains("hostz"), "{error}");
        assert!(parse_host("hostc=16").is_err());
        let both = ["--objective", "spread", "--threshold", "5"];
        let error = ask(INVENTORY, &both, false).expect_err("is refused");
        assert!(
            error.to_string().contains("leave one of them out"),
            "{error}"
        );
        assert!(ask(INVENTORY, &both[..2], false).is_ok());
    }
}
