//! Carries out a verb: one or two calls to the agent, and a screen or JSON from the answer.

use std::io::{self, Write};
use std::time::Duration;

use clap::CommandFactory;
use hyper::Method;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::arguments::{Arguments, HostVerb, Verb};
use super::remote::{RemoteError, endpoint};
use super::{colour, follow, guests, screen, wide};
use crate::api::views::{ClusterView, Event, GuestView, StopGuest};
use crate::console;
use crate::drs;
use crate::drs::plan::PlanError;
use crate::http::client::{CallError, Client};
use crate::leaving;
use crate::maintenance;
use crate::maintenance::cli::ClusterVerb;
use crate::migration;
use crate::openapi;
use crate::rules;
use crate::settings;
use crate::tokens;

/// Verbs wait for the act itself (a migration, a maintenance), which may take long.
const CALL_LIMIT: Duration = Duration::from_hours(1);

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The agent is not there.
    #[error(
        "{0}\nno agent answers there; start one with: cluster-agent --datastore DIR \
         (or name its socket with --socket)"
    )]
    NoAgent(CallError),
    /// No agent of this cluster is there.
    #[error(
        "{0}\nno agent of this cluster answers there; look at --server (the port is that of \
         the agent's --port) and --ca-file (what `godwit ca` prints on a host)"
    )]
    NoServer(CallError),
    /// What is needed to ask an agent from afar.
    #[error("{0}")]
    Remote(#[from] RemoteError),
    /// The agent refused or its answer was lost.
    #[error("{0}")]
    Call(CallError),
    /// No guest, or more than one, is meant by a name.
    #[error("{0}")]
    Name(String),
    /// What was asked for did not come about.
    #[error("{0}")]
    Failed(String),
    /// A plan could not be made.
    #[error("{0}")]
    Plan(#[from] PlanError),
    /// The answer could not be printed.
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

impl From<CallError> for CliError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Unreachable { is_local: true, .. } => Self::NoAgent(error),
            CallError::Unreachable { .. } => Self::NoServer(error),
            other => Self::Call(other),
        }
    }
}

/// Carry out the command line.
pub async fn run(arguments: Arguments) -> Result<(), CliError> {
    let agent = Agent {
        client: Client::new(endpoint(&arguments)?, CALL_LIMIT),
        json: arguments.json,
    };
    match arguments.verb {
        Verb::Status => agent.show("/v1/cluster", screen::status).await,
        Verb::Hosts(list) => {
            let screen = if list.wide {
                wide::hosts
            } else {
                screen::hosts
            };
            let hosts = |c: &ClusterView| screen(&c.hosts);
            agent.show("/v1/cluster", hosts).await
        }
        Verb::Guests(list) => {
            let screen = if list.wide {
                wide::guests
            } else {
                screen::guests
            };
            let guests = |c: &ClusterView| screen(&c.guests);
            agent.show("/v1/cluster", guests).await
        }
        Verb::Images => {
            let images = |names: &Vec<String>| screen::images(names);
            agent.show("/v1/images", images).await
        }
        Verb::Events {
            count,
            follow: true,
        } => follow::run(&agent, count).await,
        Verb::Events { count, .. } => {
            let events = |events: &Vec<Event>| screen::events(events);
            agent
                .show(&format!("/v1/events?count={count}"), events)
                .await
        }
        Verb::Create(arguments) => guests::create(&agent, arguments).await,
        Verb::Clone(arguments) => guests::clone(&agent, arguments).await,
        Verb::Edit(arguments) => guests::edit(&agent, arguments).await,
        Verb::Start { guest, on } => {
            let place = on.map(|host| format!("?on={host}")).unwrap_or_default();
            let act = format!("start{place}");
            agent.guest_act(&guest, &act, &()).await
        }
        Verb::Stop { guest, grace } => {
            agent
                .guest_act(&guest, "stop", &StopGuest { grace_s: grace })
                .await
        }
        Verb::Pause { guest } => agent.guest_act(&guest, "pause", &()).await,
        Verb::Resume { guest } => agent.guest_act(&guest, "resume", &()).await,
        Verb::Reboot { guest } => agent.guest_act(&guest, "reboot", &()).await,
        Verb::Console { guest } => console::cli::run(&agent, &guest).await,
        Verb::Migrate(arguments) => migration::cli::run(&agent, arguments).await,
        Verb::Delete { guest } => {
            agent
                .act(Method::DELETE, &format!("/v1/guests/{guest}"), &())
                .await
        }
        Verb::Host(HostVerb::Forget { host }) => {
            agent
                .act(Method::DELETE, &format!("/v1/hosts/{host}"), &())
                .await
        }
        Verb::Host(HostVerb::Maintenance(wish)) => maintenance::cli::run(&agent, wish).await,
        Verb::Host(HostVerb::Leave(wish)) => leaving::cli::run(&agent, wish).await,
        Verb::Config(verb) => settings::cli::run(&agent, verb).await,
        Verb::Cluster(ClusterVerb::UpgradePlan) => maintenance::cli::upgrade_plan(&agent).await,
        Verb::Drs(verb) => drs::cli::run(&agent, verb).await,
        Verb::Rules(verb) => rules::cli::run(&agent, verb).await,
        Verb::Token(verb) => tokens::cli::run(&agent, verb).await,
        Verb::Ca => tokens::cli::authority(&agent).await,
        Verb::Openapi => print(&openapi::document()),
        Verb::Completions { shell } => {
            let mut command = Arguments::command();
            clap_complete::generate(shell, &mut command, "godwit", &mut io::stdout());
            Ok(())
        }
    }
}

/// The agent that is asked, and how its answers are printed.
pub struct Agent {
    client: Client,
    /// Print JSON.
    pub json: bool,
}

impl Agent {
    /// For calls of another kind.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Ask for something.
    pub async fn ask<A: DeserializeOwned>(&self, path: &str) -> Result<A, CliError> {
        Ok(self.client.call(Method::GET, path, None::<&()>).await?)
    }

    /// Ask for something and show it.
    pub async fn show<A>(&self, path: &str, screen: impl Fn(&A) -> String) -> Result<(), CliError>
    where
        A: DeserializeOwned + Serialize,
    {
        let answer: A = self.ask(path).await?;
        if self.json {
            return print_json(&answer);
        }
        print(&screen(&answer))
    }

    /// Have something done and say what came of it, in the agent's words.
    pub async fn act(
        &self,
        method: Method,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<(), CliError> {
        let answer: Value = self.client.call(method, path, Some(body)).await?;
        if self.json {
            return print_json(&answer);
        }
        match answer.get("said").and_then(Value::as_str) {
            Some(said) => Ok(writeln!(io::stdout(), "{said}")?),
            None => Ok(()),
        }
    }

    /// Have something done, and give back the answer.
    pub async fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<A, CliError> {
        Ok(self.client.call(method, path, Some(body)).await?)
    }

    /// Have a connection that carries bytes both ways.
    pub async fn upgrade(
        &self,
        path: &str,
        protocol: &'static str,
    ) -> Result<TokioIo<Upgraded>, CliError> {
        Ok(self.client.upgrade(path, protocol).await?)
    }

    /// The guest that is meant by the beginning of its name.
    pub async fn guest(&self, named: &str) -> Result<String, CliError> {
        let cluster: ClusterView = self.ask("/v1/cluster").await?;
        meant(named, &cluster.guests).map(str::to_owned)
    }

    /// The same with a guest that may be named by the beginning of its name.
    pub async fn guest_act(
        &self,
        named: &str,
        act: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<(), CliError> {
        let guest = self.guest(named).await?;
        self.act(Method::POST, &format!("/v1/guests/{guest}/{act}"), body)
            .await
    }
}

/// Print a text, in its colours if they are wanted.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout();
    if colour::wanted() {
        return Ok(out.write_all(text.as_bytes())?);
    }
    Ok(out.write_all(colour::plain(text).as_bytes())?)
}

/// Print a value for scripts.
pub fn print_json(answer: &impl Serialize) -> Result<(), CliError> {
    let mut out = io::stdout();
    serde_json::to_writer_pretty(&mut out, answer).map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}

/// The guest that `named` means: its name, or the only one that begins so.
fn meant<'a>(named: &'a str, guests: &'a [GuestView]) -> Result<&'a str, CliError> {
    if let Some(exact) = guests.iter().find(|guest| guest.name == named) {
        return Ok(&exact.name);
    }
    let beginning: Vec<_> = guests
        .iter()
        .map(|guest| guest.name.as_str())
        .filter(|name| name.starts_with(named))
        .collect();
    match beginning[..] {
        [only] => Ok(only),
        // Perhaps it has just been made; the agent will say if not.
        [] => Ok(named),
        _ => Err(CliError::Name(format!(
            "{named} may mean {}; write more of the name",
            beginning.join(" or ")
        ))),
    }
}
