//! `godwit host leave`.

use clap::Args;
use hyper::Method;

use super::routes::Leave;
use crate::api::views::ClusterView;
use crate::cli::{Agent, CliError};
use crate::maintenance::cli::{Goal, follow};

/// Which host, and how.
#[derive(Debug, Args)]
pub struct LeaveArguments {
    /// The host.
    pub host: String,
    /// It shall stay after all.
    #[arg(long)]
    pub cancel: bool,
    /// Even if afterwards the failure of a host may not be survived.
    #[arg(long, conflicts_with = "cancel")]
    pub force: bool,
    /// Do not wait until it has left; that goes on by itself.
    #[arg(long)]
    pub no_wait: bool,
}

/// Ask for it, and show how it goes until the host is off the list.
pub async fn run(agent: &Agent, wish: LeaveArguments) -> Result<(), CliError> {
    let path = format!("/v1/hosts/{}/leave", wish.host);
    let body = Leave {
        cancel: wish.cancel,
        force: wish.force,
    };
    agent.act(Method::POST, &path, &body).await?;
    if wish.cancel || wish.no_wait || agent.json {
        return Ok(());
    }
    let host = &wish.host;
    let goal = Goal {
        reached: |cluster: &ClusterView, host: &str| {
            cluster.hosts.iter().all(|one| one.name != host)
        },
        done: "has left the cluster",
        then: "it joins again when its agent starts".to_owned(),
        back: format!("godwit host leave {host} --cancel"),
    };
    match follow(agent, host, &goal).await {
        // The agent that was asked is the one that has ended.
        Err(CliError::NoAgent(_)) => {
            println!("{host} has left the cluster: this was its agent, and it has ended");
            Ok(())
        }
        other => other,
    }
}
