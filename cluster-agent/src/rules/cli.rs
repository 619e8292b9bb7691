//! `godwit rules ...`.

use std::collections::BTreeSet;

use clap::Subcommand;
use cluster_core::model::{Affinity, Rule};
use hyper::Method;

use super::routes::{Reserve, RulesView};
use super::words;
use crate::cli::{Agent, CliError, print, print_json};
use crate::drs::view::DrsView;

/// What to do about rules.
#[derive(Debug, Subcommand)]
pub enum RulesVerb {
    /// Add a rule, or replace the one of that name.
    #[command(subcommand)]
    Add(NewRule),
    /// List the rules, and which are broken now.
    List,
    /// Remove a rule.
    Remove {
        /// Its name.
        name: String,
    },
    /// Say which hosts a group has; without hosts the group goes.
    Group {
        /// Its name.
        name: String,
        /// The hosts.
        hosts: Vec<String>,
    },
    /// Keep processor time for a guest: counted wherever guests are placed, moved and admitted, not
    /// enforced on a host that is busy all the same.
    Reserve {
        /// The guest; the beginning of its name is enough.
        guest: String,
        /// Thousandths of a core; 0: none.
        #[arg(long)]
        mcpu: u64,
    },
}

/// A new rule.
#[derive(Debug, Subcommand)]
pub enum NewRule {
    /// No two of these guests share a host.
    Apart {
        /// Name of the rule.
        name: String,
        /// Two or more guests, by their full names.
        #[arg(required = true, num_args = 2..)]
        guests: Vec<String>,
    },
    /// These guests share a host.
    Together {
        /// Name of the rule.
        name: String,
        /// Two or more guests, by their full names.
        #[arg(required = true, num_args = 2..)]
        guests: Vec<String>,
    },
    /// These guests must run on the hosts of a group.
    On(GuestsToHosts),
    /// These guests must not run on the hosts of a group.
    Off(GuestsToHosts),
}

/// Guests and a group of hosts.
#[derive(Debug, clap::Args)]
pub struct GuestsToHosts {
    /// Name of the rule.
    name: String,
    /// The group; `godwit rules group` makes one.
    group: String,
    /// The guests, by their full names.
    #[arg(required = true)]
    guests: Vec<String>,
    /// A wish: they should, but need not.
    #[arg(long)]
    should: bool,
}

impl GuestsToHosts {
    fn rule(self, affinity: Affinity) -> (String, Rule) {
        let rule = Rule::GuestsToHosts {
            guests: self.guests.into_iter().collect(),
            group: self.group,
            affinity,
            hard: !self.should,
        };
        (self.name, rule)
    }
}

impl NewRule {
    fn rule(self) -> (String, Rule) {
        let set = |guests: Vec<String>| guests.into_iter().collect();
        match self {
            Self::Apart { name, guests } => (
                name,
                Rule::KeepApart {
                    guests: set(guests),
                },
            ),
            Self::Together { name, guests } => (
                name,
                Rule::KeepTogether {
                    guests: set(guests),
                },
            ),
            Self::On(wish) => wish.rule(Affinity::On),
            Self::Off(wish) => wish.rule(Affinity::Off),
        }
    }
}

/// Carries out a verb.
pub async fn run(agent: &Agent, verb: RulesVerb) -> Result<(), CliError> {
    match verb {
        RulesVerb::Add(new) => {
            let (name, rule) = new.rule();
            agent
                .act(Method::PUT, &format!("/v1/rules/{name}"), &rule)
                .await
        }
        RulesVerb::List => {
            let rules: RulesView = agent.ask("/v1/rules").await?;
            if agent.json {
                return print_json(&rules);
            }
            let drs: DrsView = agent.ask("/v1/drs").await?;
            print(&words::list(&rules, &drs.broken))
        }
        RulesVerb::Remove { name } => {
            let path = format!("/v1/rules/{name}");
            agent.act(Method::DELETE, &path, &()).await
        }
        RulesVerb::Group { name, hosts } => {
            let hosts: BTreeSet<String> = hosts.into_iter().collect();
            let path = format!("/v1/groups/{name}");
            agent.act(Method::PUT, &path, &hosts).await
        }
        RulesVerb::Reserve { guest, mcpu } => {
            agent
                .guest_act(&guest, "reservation", &Reserve { mcpu })
                .await
        }
    }
}
