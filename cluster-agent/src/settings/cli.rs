//! `godwit config ...`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use cluster_core::settings::{AdmissionPolicy, Enforcement, IsolationResponse};
use hyper::Method;

use super::{ChangeConfig, ConfigView};
use crate::cli::table::table;
use crate::cli::{Agent, CliError};

/// What to do about the cluster's settings.
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Show what is set.
    Show,
    /// Change what is named; the rest stays. Balancing has its own: godwit drs set.
    Set(SetArguments),
}

/// What to change.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct SetArguments {
    /// What is kept free for lost hosts: `tolerate:1` (the guests of any one host find room on
    /// the others), `reserve:20` (20 % of all CPU and memory), or `off`.
    #[arg(long, value_name = "POLICY", value_parser = parse_admission)]
    admission: Option<AdmissionPolicy>,
    /// What happens to a wish that would break that.
    #[arg(long, value_enum)]
    enforcement: Option<EnforcementName>,
    /// What a host does with its guests when it hears no other host, though the datastore
    /// answers.
    #[arg(long, value_enum)]
    isolation_response: Option<IsolationName>,
    /// Guests that may be booting on one host at a time.
    #[arg(long, value_name = "COUNT")]
    starts_per_host: Option<u32>,
    /// Tries to start a guest, after which it waits for somebody to act.
    #[arg(long, value_name = "COUNT")]
    start_attempts: Option<u32>,
    /// Milliseconds of network silence after which a host is suspect.
    #[arg(long, value_name = "MS")]
    suspect_after: Option<u64>,
    /// Milliseconds of network silence after which a host that beats on the datastore is
    /// isolated.
    #[arg(long, value_name = "MS")]
    isolated_after: Option<u64>,
    /// Seconds that a guest waits for one that it depends on; then it starts without.
    #[arg(long, value_name = "SECONDS")]
    dependency_patience: Option<u64>,
    /// Seconds before a guest that could be started nowhere is tried again; doubles.
    #[arg(long, value_name = "SECONDS")]
    retry_after: Option<u64>,
}

/// The names of [`Enforcement`].
#[derive(Debug, Clone, Copy, ValueEnum)]
enum EnforcementName {
    /// It is refused.
    Refuse,
    /// It is done, with a warning.
    Warn,
}

/// The names of [`IsolationResponse`].
#[derive(Debug, Clone, Copy, ValueEnum)]
enum IsolationName {
    /// They run on where they are.
    Leave,
    /// They are shut down by their power buttons and started elsewhere.
    ShutDown,
    /// They are switched off and started elsewhere.
    PowerOff,
}

impl From<EnforcementName> for Enforcement {
    fn from(name: EnforcementName) -> Self {
        match name {
            EnforcementName::Refuse => Self::Refuse,
            EnforcementName::Warn => Self::Warn,
        }
    }
}

impl From<IsolationName> for IsolationResponse {
    fn from(name: IsolationName) -> Self {
        match name {
            IsolationName::Leave => Self::Leave,
            IsolationName::ShutDown => Self::ShutDown,
            IsolationName::PowerOff => Self::PowerOff,
        }
    }
}

/// `off`, `tolerate:1`, `reserve:20`.
fn parse_admission(text: &str) -> Result<AdmissionPolicy, String> {
    let (policy, number) = text.split_once(':').unwrap_or((text, ""));
    match (policy, number.parse()) {
        ("off", _) if number.is_empty() => Ok(AdmissionPolicy::Off),
        ("tolerate", Ok(hosts)) => Ok(AdmissionPolicy::TolerateHostFailures(hosts)),
        ("reserve", Ok(percent)) => Ok(AdmissionPolicy::ReservePercent(percent)),
        _ => Err("write it as tolerate:1, reserve:20 or off".to_owned()),
    }
}

/// Carries out a verb.
pub async fn run(agent: &Agent, verb: ConfigVerb) -> Result<(), CliError> {
    match verb {
        ConfigVerb::Show => agent.show("/v1/config", screen).await,
        ConfigVerb::Set(wish) => agent.act(Method::PATCH, "/v1/config", &change(&wish)).await,
    }
}

fn change(wish: &SetArguments) -> ChangeConfig {
    let ms = |seconds: Option<u64>| {
        seconds.map(|seconds| Duration::from_secs(seconds).as_millis() as u64)
    };
    ChangeConfig {
        admission: wish.admission,
        enforcement: wish.enforcement.map(Enforcement::from),
        isolation_response: wish.isolation_response.map(IsolationResponse::from),
        starts_per_host: wish.starts_per_host,
        start_attempts: wish.start_attempts,
        suspect_after_ms: wish.suspect_after,
        isolated_after_ms: wish.isolated_after,
        dependency_patience_ms: ms(wish.dependency_patience),
        retry_after_ms: ms(wish.retry_after),
    }
}

fn screen(config: &ConfigView) -> String {
    let (settings, lease) = (&config.settings, &config.lease);
    let timings = &settings.timings;
    let (admission, promise) = match settings.admission {
        AdmissionPolicy::Off => ("off".to_owned(), "whatever fits now may start".to_owned()),
        AdmissionPolicy::TolerateHostFailures(1) => (
            "tolerate:1".to_owned(),
            "the guests of any one lost host find room on the others".to_owned(),
        ),
        AdmissionPolicy::TolerateHostFailures(hosts) => (
            format!("tolerate:{hosts}"),
            format!("the guests of any {hosts} lost hosts find room on the others"),
        ),
        AdmissionPolicy::ReservePercent(percent) => (
            format!("reserve:{percent}"),
            format!("{percent} % of all CPU and memory stay free"),
        ),
    };
    let (enforcement, breaks) = match settings.enforcement {
        Enforcement::Refuse => ("refuse", "a wish that would break that is refused"),
        Enforcement::Warn => (
            "warn",
            "a wish that breaks that is carried out, with a warning",
        ),
    };
    let (isolation, response) = match settings.isolation_response {
        IsolationResponse::Leave => ("leave", "guests of a cut-off host run on there"),
        IsolationResponse::ShutDown => (
            "shut-down",
            "guests of a cut-off host are shut down and started elsewhere",
        ),
        IsolationResponse::PowerOff => (
            "power-off",
            "guests of a cut-off host are switched off and started elsewhere",
        ),
    };
    let ms = |ms: u64| format!("{ms} ms");
    let seconds = |ms: u64| format!("{} s", ms / 1000);
    let row = |name: &str, value: String, what: &str| [name.to_owned(), value, what.to_owned()];
    let rows = [
        row("admission", admission, &promise),
        row("enforcement", enforcement.to_owned(), breaks),
        row("isolation-response", isolation.to_owned(), response),
        row(
            "starts-per-host",
            settings.starts_per_host.to_string(),
            "guests that may be booting on one host at a time",
        ),
        row(
            "start-attempts",
            settings.start_attempts.to_string(),
            "tries to start a guest before it waits for somebody to act",
        ),
        row(
            "suspect-after",
            ms(timings.suspect_after_ms),
            "network silence that makes a host suspect",
        ),
        row(
            "isolated-after",
            ms(timings.isolated_after_ms),
            "network silence that makes it isolated if it beats on the datastore",
        ),
        row(
            "dependency-patience",
            seconds(timings.dependency_patience_ms),
            "how long a guest waits for one that it depends on",
        ),
        row(
            "retry-after",
            seconds(timings.retry_after_ms),
            "before a guest that could be started nowhere is tried again; doubles",
        ),
        row(
            "(watch)",
            ms(lease.watch_ms.into()),
            "a silent host's guests are taken over; with the rest of the leases' numbers in \
             cluster.toml",
        ),
    ];
    table(["SETTING", "VALUE", "WHAT IT MEANS"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admission_policies_are_read() {
        let read = parse_admission;
        assert_eq!(read("off"), Ok(AdmissionPolicy::Off));
        assert_eq!(
            read("tolerate:2"),
            Ok(AdmissionPolicy::TolerateHostFailures(2))
        );
        assert_eq!(read("reserve:20"), Ok(AdmissionPolicy::ReservePercent(20)));
        for bad in ["", "tolerate", "tolerate:", "reserve:-1", "off:1", "on"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
