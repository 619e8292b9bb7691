//! `godwit drs ...`.

use clap::{Args, Subcommand, ValueEnum};
use cluster_core::drs::Automation;
use hyper::Method;

use super::plan::{self, PlanArguments};
use super::screen;
use super::view::{ChangeDrs, ChangeGuestDrs, DrsView};
use crate::api::views::Event;
use crate::cli::{Agent, CliError, print, print_json};

/// What to do about balance.
#[derive(Debug, Subcommand)]
pub enum DrsVerb {
    /// How even the cluster is, what is recommended and what is under way.
    Status,
    /// List what is recommended, with reasons, gains and costs.
    Recommendations,
    /// Explain one recommendation in full.
    Explain {
        /// Its number, as `godwit drs recommendations` has it.
        number: u64,
    },
    /// Carry recommendations out.
    Apply {
        /// Their numbers; all of them if none is named.
        numbers: Vec<u64>,
    },
    /// What was carried out and how it went, the newest last.
    History {
        /// How many.
        #[arg(short = 'n', long, default_value_t = 20)]
        count: u64,
    },
    /// Change how the cluster, or one guest, is balanced; `godwit drs status` shows how it is now.
    Set(SetArguments),
    /// Plan for a cluster described in a file; nothing is asked of any agent.
    Plan(PlanArguments),
}

/// What to change.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct SetArguments {
    /// How much is done without asking.
    #[arg(long, value_enum)]
    pub automation: Option<Level>,
    /// This guest's automation instead of the cluster's.
    #[arg(long, requires = "automation", conflicts_with_all = ["threshold", "round", "at_once",
        "at_once_per_host", "at_once_per_link", "hold", "rise", "fall"])]
    pub guest: Option<String>,
    /// 1 (conservative) to 5 (eager).
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub threshold: Option<u8>,
    /// Seconds from one plan to the next.
    #[arg(long, value_name = "SECONDS")]
    pub round: Option<u64>,
    /// Migrations at a time in the whole cluster.
    #[arg(long, value_name = "MIGRATIONS")]
    pub at_once: Option<u32>,
    /// Migrations at a time into or out of one host.
    #[arg(long, value_name = "MIGRATIONS")]
    pub at_once_per_host: Option<u32>,
    /// Migrations at a time between two hosts, both ways together.
    #[arg(long, value_name = "MIGRATIONS")]
    pub at_once_per_link: Option<u32>,
    /// Seconds that a jump in demand has to last before it counts.
    #[arg(long, value_name = "SECONDS")]
    pub hold: Option<u64>,
    /// Time constant of rising demand, in seconds.
    #[arg(long, value_name = "SECONDS")]
    pub rise: Option<u64>,
    /// Time constant of falling demand, in seconds.
    #[arg(long, value_name = "SECONDS")]
    pub fall: Option<u64>,
}

/// How much is done without asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Everything is recommended: where a guest starts, too.
    Manual,
    /// Guests are placed when they start; moves are recommended.
    Partial,
    /// Moves are carried out.
    Full,
    /// With --guest: as the cluster has it.
    Default,
    /// With --guest: it is never moved by itself, not even for maintenance.
    Excluded,
}

impl Level {
    fn automation(self) -> Option<Automation> {
        match self {
            Self::Manual => Some(Automation::Manual),
            Self::Partial => Some(Automation::Partial),
            Self::Full => Some(Automation::Full),
            Self::Default | Self::Excluded => None,
        }
    }
}

/// Carries out a verb.
pub async fn run(agent: &Agent, verb: DrsVerb) -> Result<(), CliError> {
    match verb {
        DrsVerb::Status => agent.show("/v1/drs", screen::status).await,
        DrsVerb::Recommendations => agent.show("/v1/drs", screen::recommendations).await,
        DrsVerb::Explain { number } => explain(agent, number).await,
        DrsVerb::Apply { numbers } => agent.act(Method::POST, "/v1/drs/apply", &numbers).await,
        DrsVerb::History { count } => {
            let path = format!("/v1/events?about=drs&count={count}");
            let history = |events: &Vec<Event>| screen::history(events);
            agent.show(&path, history).await
        }
        DrsVerb::Set(wish) => set(agent, wish).await,
        DrsVerb::Plan(arguments) => print(&plan::report(&arguments, agent.json)?),
    }
}

async fn explain(agent: &Agent, number: u64) -> Result<(), CliError> {
    let drs: DrsView = agent.ask("/v1/drs").await?;
    let Some(step) = drs.round.get(number) else {
        return Err(CliError::Name(format!(
            "there is no recommendation {number} (any more); `godwit drs recommendations` lists them"
        )));
    };
    if agent.json {
        return print_json(step);
    }
    print(&screen::explanation(number, step, &drs))
}

async fn set(agent: &Agent, wish: SetArguments) -> Result<(), CliError> {
    if let (Some(guest), Some(level)) = (&wish.guest, wish.automation) {
        let change = ChangeGuestDrs {
            automation: level.automation(),
            movable: level != Level::Excluded,
        };
        return agent.guest_act(guest, "automation", &change).await;
    }
    if matches!(wish.automation, Some(Level::Default | Level::Excluded)) {
        let why = "default and excluded are for one guest; name it with --guest";
        return Err(CliError::Name(why.to_owned()));
    }
    let ms = |seconds: Option<u64>| seconds.map(|seconds| seconds.saturating_mul(1000));
    let change = ChangeDrs {
        automation: wish.automation.and_then(Level::automation),
        threshold: wish.threshold,
        round_ms: ms(wish.round),
        at_once: wish.at_once,
        at_once_per_host: wish.at_once_per_host,
        at_once_per_link: wish.at_once_per_link,
        hold_ms: ms(wish.hold),
        rise_ms: ms(wish.rise),
        fall_ms: ms(wish.fall),
    };
    agent.act(Method::POST, "/v1/drs/settings", &change).await
}
