//! What an operator may set for the whole cluster beyond balancing: `godwit config`.

pub mod cli;
pub mod routes;

use cluster_core::settings::{AdmissionPolicy, Enforcement, IsolationResponse, Settings};
use serde::{Deserialize, Serialize};
use storage_core::timing::Timing;

/// Host failures that admission control can provide for: it looks at every such set of hosts.
pub(crate) const TOLERATED_MAX: u32 = 3;
/// Boots at a time, and tries.
pub(crate) const COUNT_MAX: u32 = 64;
/// Below this, a busy network makes everybody suspect.
const SILENCE_MS_MIN: u64 = 500;
/// No wait is longer than an hour.
pub(crate) const WAIT_MS_MAX: u64 = 3_600_000;

/// `GET /v1/config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ConfigView {
    /// What can be set.
    pub settings: Settings,
    /// The numbers of the leases. They are in cluster.toml, and changed there only while no
    /// agent and no guest runs.
    pub lease: Timing,
}

/// `PATCH /v1/config`: what is to change; the rest stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ChangeConfig {
    /// What is kept free for the loss of hosts.
    pub admission: Option<AdmissionPolicy>,
    /// Refuse or warn.
    pub enforcement: Option<Enforcement>,
    /// What a cut-off host does with its guests.
    pub isolation_response: Option<IsolationResponse>,
    /// How many guests may be booting on one host at a time.
    pub starts_per_host: Option<u32>,
    /// How often a guest's start is tried.
    pub start_attempts: Option<u32>,
    /// Network silence that makes a host suspect.
    pub suspect_after_ms: Option<u64>,
    /// Network silence that makes a host isolated that beats on the datastore.
    pub isolated_after_ms: Option<u64>,
    /// How long a guest waits for one that it depends on.
    pub dependency_patience_ms: Option<u64>,
    /// First pause before a guest is tried again.
    pub retry_after_ms: Option<u64>,
}

impl ChangeConfig {
    /// Changes the settings, or says what is wrong.
    pub fn apply(&self, settings: &mut Settings) -> Result<(), String> {
        set(&mut settings.admission, self.admission);
        set(&mut settings.enforcement, self.enforcement);
        set(&mut settings.isolation_response, self.isolation_response);
        set(&mut settings.starts_per_host, self.starts_per_host);
        set(&mut settings.start_attempts, self.start_attempts);
        let timings = &mut settings.timings;
        set(&mut timings.suspect_after_ms, self.suspect_after_ms);
        set(&mut timings.isolated_after_ms, self.isolated_after_ms);
        set(
            &mut timings.dependency_patience_ms,
            self.dependency_patience_ms,
        );
        set(&mut timings.retry_after_ms, self.retry_after_ms);
        check(settings)
    }
}

fn set<T: Copy>(to: &mut T, wish: Option<T>) {
    *to = wish.unwrap_or(*to);
}

fn check(settings: &Settings) -> Result<(), String> {
    match settings.admission {
        AdmissionPolicy::TolerateHostFailures(hosts) if hosts > TOLERATED_MAX => {
            return Err(format!(
                "admission control provides for the loss of at most {TOLERATED_MAX} hosts at once"
            ));
        }
        AdmissionPolicy::ReservePercent(percent) if percent >= 100 => {
            return Err("with 100 % kept free nothing could run; keep 99 % or less".to_owned());
        }
        _ => {}
    }
    for (name, count) in [
        ("starts-per-host", settings.starts_per_host),
        ("start-attempts", settings.start_attempts),
    ] {
        if !(1..=COUNT_MAX).contains(&count) {
            return Err(format!("{name} goes from 1 to {COUNT_MAX}"));
        }
    }
    let timings = &settings.timings;
    let (suspect, isolated) = (timings.suspect_after_ms, timings.isolated_after_ms);
    if suspect < SILENCE_MS_MIN || isolated < suspect {
        return Err(format!(
            "a host is suspect after at least {SILENCE_MS_MIN} ms of silence, and isolated not \
             before it is suspect; asked for {suspect} and {isolated} ms"
        ));
    }
    for (name, wait) in [
        ("isolated-after", isolated),
        ("dependency-patience", timings.dependency_patience_ms),
        ("retry-after", timings.retry_after_ms),
    ] {
        if !(1..=WAIT_MS_MAX).contains(&wait) {
            return Err(format!("{name} is at least 1 ms and at most an hour"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_changes() {
        let mut settings = Settings::default();
        let change = ChangeConfig {
            admission: Some(AdmissionPolicy::ReservePercent(20)),
            isolation_response: Some(IsolationResponse::ShutDown),
            ..ChangeConfig::default()
        };
        change.apply(&mut settings).unwrap();
        let expected = Settings {
            admission: AdmissionPolicy::ReservePercent(20),
            isolation_response: IsolationResponse::ShutDown,
            ..Settings::default()
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn what_would_do_harm_is_refused() {
        let none = ChangeConfig::default();
        for (change, why) in [
            (
                ChangeConfig {
                    admission: Some(AdmissionPolicy::TolerateHostFailures(4)),
                    ..none.clone()
                },
                "at most 3 hosts",
            ),
            (
                ChangeConfig {
                    admission: Some(AdmissionPolicy::ReservePercent(100)),
                    ..none.clone()
                },
                "nothing could run",
            ),
            (
                ChangeConfig {
                    starts_per_host: Some(0),
                    ..none.clone()
                },
                "starts-per-host goes from 1",
            ),
            (
                ChangeConfig {
                    suspect_after_ms: Some(3000),
                    ..none.clone()
                },
                "not before it is suspect",
            ),
            (
                // What does not fit into a policy file would make it unreadable.
                ChangeConfig {
                    dependency_patience_ms: Some(u64::MAX),
                    ..none
                },
                "at most an hour",
            ),
        ] {
            let refused = change.apply(&mut Settings::default()).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
