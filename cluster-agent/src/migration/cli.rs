//! `godwit migrate`.

use std::time::{Duration, Instant};

use clap::Args;
use hyper::Method;
use indicatif::{ProgressBar, ProgressStyle};
use vmm_core::migration::Phase;

use super::view::{MigrateGuest, MigrationView, Ordered, Rehearsed};
use crate::cli::{Agent, CliError, print, print_json};

/// How often the source is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// An order that the source has not begun by then was lost.
const BEGIN_LIMIT: Duration = Duration::from_secs(30);
const BAR: &str = "{prefix} {wide_bar} {percent:>3} %\n{msg}";

/// Which guest goes where.
#[derive(Debug, Args)]
pub struct MigrateArguments {
    /// The guest; the beginning of its name is enough.
    guest: String,
    /// The host [default: the best one].
    host: Option<String>,
    /// Move nothing: check everything with both hosts, measure, and tell how long it would take.
    #[arg(long)]
    dry_run: bool,
}

/// Migrate, and show how it goes.
pub async fn run(agent: &Agent, arguments: MigrateArguments) -> Result<(), CliError> {
    let guest = agent.guest(&arguments.guest).await?;
    let wish = MigrateGuest { to: arguments.host };
    if arguments.dry_run {
        return rehearse(agent, &guest, &wish).await;
    }
    let path = format!("/v1/guests/{guest}/migrate");
    let ordered: Ordered = agent.call(Method::POST, &path, &wish).await?;
    let view = follow(agent, &guest, &ordered).await?;
    if let Some(error) = &view.progress.error {
        let stays = match view.progress.phase {
            Phase::Uncertain => "stands still",
            _ => "stays",
        };
        let (from, to) = (&ordered.from, &ordered.to);
        return Err(CliError::Failed(format!(
            "{guest} {stays} on {from} and was not migrated to {to}: {error}"
        )));
    }
    if agent.json {
        return print_json(&view);
    }
    print(&words(&guest, &ordered, &view))
}

async fn rehearse(agent: &Agent, guest: &str, wish: &MigrateGuest) -> Result<(), CliError> {
    let path = format!("/v1/guests/{guest}/rehearsal");
    let told: Rehearsed = agent.call(Method::POST, &path, wish).await?;
    if agent.json {
        return print_json(&told);
    }
    let (from, to, words) = (&told.from, &told.to, told.forecast.words());
    print(&format!("{guest} can move from {from} to {to}: {words}\n"))
}

async fn follow(agent: &Agent, guest: &str, ordered: &Ordered) -> Result<MigrationView, CliError> {
    let path = format!("/v1/guests/{guest}/migration?on={}", ordered.from);
    let give_up = Instant::now() + BEGIN_LIMIT;
    let bar = if agent.json {
        ProgressBar::hidden()
    } else {
        ProgressBar::new(0)
    };
    if let Ok(style) = ProgressStyle::with_template(BAR) {
        bar.set_style(style);
    }
    bar.set_prefix(format!("{guest}: {} to {}", ordered.from, ordered.to));
    loop {
        let view: Option<MigrationView> = agent.ask(&path).await?;
        match view.filter(|view| view.number == ordered.number) {
            Some(view) if view.over => {
                bar.finish_and_clear();
                return Ok(view);
            }
            Some(view) => show(&bar, &view),
            None if Instant::now() > give_up => {
                return Err(CliError::Failed(format!(
                    "{} has not begun to migrate {guest}; see: godwit events",
                    ordered.from
                )));
            }
            None => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn show(bar: &ProgressBar, view: &MigrationView) {
    let now = &view.progress;
    bar.set_length(now.sent_bytes + now.left_bytes);
    bar.set_position(now.sent_bytes);
    bar.set_message(now.words());
}

fn words(guest: &str, ordered: &Ordered, view: &MigrationView) -> String {
    let went = format!("{guest} moved from {} to {}", ordered.from, ordered.to);
    let Some(summary) = &view.progress.summary else {
        return format!("{went}\n");
    };
    format!("{went} in {}\n", summary.words())
}
