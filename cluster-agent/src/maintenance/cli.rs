//! `godwit host maintenance` and `godwit cluster upgrade-plan`.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use cluster_core::balance::Why;
use cluster_core::evacuate::Turn;
use hyper::Method;

use super::routes::Maintain;
use crate::api::views::ClusterView;
use crate::cli::table::{memory, table};
use crate::cli::{Agent, CliError, print};
use crate::drs::view::DrsView;

/// How often the progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Guests for which the leader has found no way for so long stay.
const STUCK_AFTER: Duration = Duration::from_secs(15);
/// Where there is a way and nothing moves for so long, it is said why.
const IDLE_AFTER: Duration = Duration::from_secs(5);
/// Nobody may be able to tell how it goes for so long.
const UNANSWERED_LIMIT: Duration = Duration::from_secs(20);

/// What to do with the cluster as a whole.
#[derive(Debug, Subcommand)]
pub enum ClusterVerb {
    /// Show how all hosts would be taken down one after the other, and what stands against it.
    UpgradePlan,
}

/// Which host, and how.
#[derive(Debug, Args)]
pub struct MaintenanceArguments {
    /// The host.
    pub host: String,
    /// Take it back into service.
    #[arg(long)]
    pub exit: bool,
    /// Even if afterwards the failure of a host may not be survived.
    #[arg(long, conflicts_with = "exit")]
    pub force: bool,
    /// Do not wait until it is empty; that goes on by itself.
    #[arg(long)]
    pub no_wait: bool,
}

/// Ask for it, and show how it goes until the host is empty.
pub async fn run(agent: &Agent, wish: MaintenanceArguments) -> Result<(), CliError> {
    let path = format!("/v1/hosts/{}/maintenance", wish.host);
    let body = Maintain {
        enter: !wish.exit,
        force: wish.force,
    };
    agent.act(Method::POST, &path, &body).await?;
    if wish.exit || wish.no_wait || agent.json {
        return Ok(());
    }
    let goal = Goal {
        reached: |cluster: &ClusterView, host: &str| {
            let known = cluster.hosts.iter().find(|one| one.name == host);
            let empty = cluster
                .guests
                .iter()
                .all(|guest| guest.host.as_deref() != Some(host));
            // Only a leader knows of every guest.
            empty
                && cluster.leader.is_some()
                && known.is_some_and(|one| one.health == "in maintenance")
        },
        done: "is empty",
        then: format!(
            "back into service: godwit host maintenance {} --exit",
            wish.host
        ),
        back: format!("godwit host maintenance {} --exit", wish.host),
    };
    follow(agent, &wish.host, &goal).await
}

/// What a host is emptied for.
pub(crate) struct Goal {
    /// Is it reached?
    pub reached: fn(&ClusterView, &str) -> bool,
    /// What is said then of the host.
    pub done: &'static str,
    /// And what can be done next.
    pub then: String,
    /// The command that takes it back.
    pub back: String,
}

/// Show how a host is emptied until the goal is reached.
pub(crate) async fn follow(agent: &Agent, host: &str, goal: &Goal) -> Result<(), CliError> {
    let began = Instant::now();
    let (mut hopeful, mut answered, mut moved) = (began, began, began);
    let mut told = String::new();
    loop {
        let (cluster, drs) = match look(agent).await {
            Ok(seen) => seen,
            // The lead may just change hands.
            Err(CliError::Call(_)) if answered.elapsed() < UNANSWERED_LIMIT => {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        answered = Instant::now();
        if (goal.reached)(&cluster, host) {
            let took = began.elapsed().as_secs_f64();
            return print(&format!(
                "{host} {} after {took:.1} s; {}\n",
                goal.done, goal.then
            ));
        }
        let here = cluster.guests.iter();
        let left: Vec<&str> = here
            .filter(|guest| guest.host.as_deref() == Some(host))
            .map(|guest| guest.name.as_str())
            .collect();
        if !drs.under_way.is_empty() {
            moved = Instant::now();
        }
        let idle = moved.elapsed() > IDLE_AFTER;
        let progress = progress(host, &left, &drs, idle.then_some(&cluster));
        if progress != told {
            print(&progress)?;
            told = progress;
        }
        let ways = drs.round.recommendations.iter();
        let mut ways = ways.filter(|one| matches!(one.step.why, Why::Maintenance { .. }));
        if !drs.under_way.is_empty() || ways.next().is_some() {
            hopeful = Instant::now();
        }
        if hopeful.elapsed() > STUCK_AFTER {
            return Err(CliError::Name(stuck(host, &left, &drs, &goal.back)));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(agent: &Agent) -> Result<(ClusterView, DrsView), CliError> {
    Ok((agent.ask("/v1/cluster").await?, agent.ask("/v1/drs").await?))
}

/// What is left and what is on its way; while nothing is, with what the cluster waits for.
fn progress(host: &str, left: &[&str], drs: &DrsView, idle: Option<&ClusterView>) -> String {
    let mut line = format!("{} left on {host}", left.len());
    let moves = drs.under_way.iter().filter_map(|step| step.moves.first());
    for (number, one) in moves.enumerate() {
        let between = if number == 0 { "; under way:" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(line, "{between} {} to {}", one.guest, one.to);
    }
    if let Some(cluster) = idle {
        let _ = write!(line, "; nothing moves: {}", why_idle(cluster, drs));
    }
    line.push('\n');
    line
}

/// Why what is planned is not begun.
fn why_idle(cluster: &ClusterView, drs: &DrsView) -> String {
    let alone = drs.left_alone.iter();
    let alone = alone.map(|one| format!("{} is left alone for a while: {}", one.guest, one.why));
    let starts = cluster.guests.iter();
    let starts = starts
        .filter(|guest| matches!(&*guest.state, "waiting" | "starting"))
        .map(|guest| format!("{} is to be started first", guest.name));
    let stays = drs.round.unresolved.iter();
    let stays = stays.map(|one| format!("{}: {}", one.what, one.because));
    let reasons: Vec<String> = alone.chain(starts).chain(stays).collect();
    if reasons.is_empty() {
        return "the leader has not begun yet; `godwit drs status` shows its plan".to_owned();
    }
    reasons.join("; ")
}

fn stuck(host: &str, left: &[&str], drs: &DrsView, back: &str) -> String {
    let mut words = format!("{host} is not empty: {} stay there", left.join(", "));
    for one in &drs.round.unresolved {
        let _ = write!(words, "\n{}: {}", one.what, one.because);
    }
    let _ = write!(
        words,
        "\nmake room or stop them, and it goes on; or take {host} back: {back}"
    );
    words
}

/// Show how all hosts would take their turns.
pub async fn upgrade_plan(agent: &Agent) -> Result<(), CliError> {
    agent
        .show("/v1/cluster/upgrade-plan", |turns: &Vec<Turn>| {
            screen(turns)
        })
        .await
}

fn screen(turns: &[Turn]) -> String {
    let rows: Vec<_> = (1..)
        .zip(turns)
        .map(|(number, turn): (u32, &Turn)| {
            let verdict = if turn.against.is_empty() {
                "can be taken down".to_owned()
            } else {
                format!("no: {}", turn.against.join("; "))
            };
            [
                number.to_string(),
                turn.host.clone(),
                turn.moves.len().to_string(),
                memory(turn.memory_mib),
                format!(
                    "{}.{} s",
                    turn.migration_ms / 1000,
                    turn.migration_ms % 1000 / 100
                ),
                verdict,
            ]
        })
        .collect();
    let mut out = table(
        ["TURN", "HOST", "MOVES", "MEMORY", "ON THE WIRE", ""],
        &rows,
    );
    out.push_str(
        "each: godwit host maintenance HOST, the work, godwit host maintenance HOST --exit\n",
    );
    out
}

#[cfg(test)]
mod tests {
    use cluster_core::balance::Move;
    use cluster_core::drs::{LeftAlone, UnderWay};

    use super::*;

    #[test]
    fn progress_names_what_is_on_its_way() {
        let mut drs = DrsView::default();
        assert_eq!(progress("b", &["g1", "g2"], &drs, None), "2 left on b\n");
        let one = Move {
            guest: "g1".to_owned(),
            from: "b".to_owned(),
            to: "a".to_owned(),
        };
        drs.under_way.push(UnderWay {
            number: 1,
            moves: vec![one],
            since_us: 0,
            overdue_us: 0,
            because: String::new(),
        });
        let line = progress("b", &["g1", "g2"], &drs, None);
        assert_eq!(line, "2 left on b; under way: g1 to a\n");
    }

    #[test]
    fn while_nothing_moves_it_is_said_why() {
        let (mut drs, cluster) = (DrsView::default(), ClusterView::default());
        let line = progress("b", &["g1"], &drs, Some(&cluster));
        assert!(
            line.contains("nothing moves: the leader has not begun"),
            "{line}"
        );
        drs.left_alone.push(LeftAlone {
            guest: "g1".to_owned(),
            why: "no route".to_owned(),
            for_ms: 30_000,
        });
        let line = progress("b", &["g1"], &drs, Some(&cluster));
        let said = "1 left on b; nothing moves: g1 is left alone for a while: no route\n";
        assert_eq!(line, said);
    }

    #[test]
    fn a_turn_that_cannot_be_says_why() {
        let turn = Turn {
            host: "a".to_owned(),
            moves: vec![],
            memory_mib: 0,
            migration_ms: 0,
            against: vec!["no room for db".to_owned()],
        };
        assert!(screen(&[turn]).contains("no: no room for db"));
    }
}
