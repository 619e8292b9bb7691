//! What the API says and is told about balancing, as JSON.

use std::collections::BTreeMap;

use cluster_core::brain::Brain;
use cluster_core::drs::{Automation, DrsSettings, LeftAlone, Round, UnderWay};
use cluster_core::model::{Cluster, GuestId};
use cluster_core::moves::MOVES_MAX;
use cluster_core::rules::violations;
use serde::{Deserialize, Serialize};
use shared_storage::clock::boottime_us;

/// `GET /v1/drs`: what the leader has planned and does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DrsView {
    /// The settings in force.
    pub settings: DrsSettings,
    /// Has demand been observed for long enough to act on it?
    pub settled: bool,
    /// What the last round found.
    pub round: Round,
    /// What is being carried out.
    pub under_way: Vec<UnderWay>,
    /// Guests that are not moved for a while because their migrations failed.
    #[serde(default)]
    pub left_alone: Vec<LeftAlone>,
    /// Rules that are broken now.
    #[serde(default)]
    pub broken: Vec<BrokenRule>,
    /// Guests with an automation of their own.
    #[serde(default)]
    pub guests: BTreeMap<GuestId, Automation>,
}

/// A rule that is broken now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BrokenRule {
    /// Its name.
    pub rule: String,
    /// By whom and how.
    pub why: String,
    /// Does it bind, or is it a wish?
    pub hard: bool,
}

impl DrsView {
    /// As the brain of the leader has it.
    pub fn draw(brain: &Brain) -> Option<Self> {
        let drs = brain.drs()?;
        let settings = brain.settings().drs;
        Some(Self {
            settled: drs.is_settled(boottime_us(), &settings),
            settings,
            round: drs.round().clone(),
            under_way: drs.under_way().to_vec(),
            left_alone: drs.left_alone(boottime_us()),
            broken: brain.cluster().map(broken).unwrap_or_default(),
            guests: brain.cluster().map(own_levels).unwrap_or_default(),
        })
    }

    /// Is this recommendation being carried out?
    pub fn is_under_way(&self, number: u64) -> bool {
        self.under_way.iter().any(|step| step.number == number)
    }

    /// How much is done with a guest without asking.
    pub fn automation(&self, guest: &str) -> Automation {
        let own = self.guests.get(guest);
        own.copied().unwrap_or(self.settings.automation)
    }
}

fn own_levels(cluster: &Cluster) -> BTreeMap<GuestId, Automation> {
    let all = cluster.guests.iter();
    all.filter_map(|(name, guest)| Some((name.clone(), guest.automation?)))
        .collect()
}

fn broken(cluster: &Cluster) -> Vec<BrokenRule> {
    let all = violations(cluster).into_iter();
    all.map(|(_, broken)| BrokenRule {
        rule: broken.rule,
        why: broken.why,
        hard: broken.hard,
    })
    .collect()
}

/// `POST /v1/drs/settings`: what is to change; the rest stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ChangeDrs {
    /// How much is done without asking.
    pub automation: Option<Automation>,
    /// 1 (conservative) to 5 (eager).
    pub threshold: Option<u8>,
    /// A plan is made so often.
    pub round_ms: Option<u64>,
    /// Migrations at a time in the whole cluster.
    pub at_once: Option<u32>,
    /// Migrations at a time into or out of one host.
    pub at_once_per_host: Option<u32>,
    /// Migrations at a time between two hosts, both ways together.
    pub at_once_per_link: Option<u32>,
    /// How long a jump in demand has to last before it counts.
    pub hold_ms: Option<u64>,
    /// Time constant of rising demand.
    pub rise_ms: Option<u64>,
    /// Time constant of falling demand.
    pub fall_ms: Option<u64>,
}

/// A plan is not made more often than this.
const ROUND_MS_MIN: u64 = 1000;
/// No time is longer than a day.
const TIME_MS_MAX: u64 = 24 * 3600 * 1000;

impl ChangeDrs {
    /// Changes the settings, or says what is wrong.
    pub fn apply(&self, settings: &mut DrsSettings) -> Result<(), String> {
        if self
            .threshold
            .is_some_and(|level| !(1..=5).contains(&level))
        {
            return Err("the threshold goes from 1 (conservative) to 5 (eager)".to_owned());
        }
        if self.round_ms.is_some_and(|every| every < ROUND_MS_MIN) {
            let least_s = ROUND_MS_MIN / 1000;
            return Err(format!("a round takes at least {least_s} s"));
        }
        let times = [
            ("round", self.round_ms),
            ("hold", self.hold_ms),
            ("rise", self.rise_ms),
            ("fall", self.fall_ms),
        ];
        if let Some((name, _)) = times.iter().find(|(_, ms)| *ms > Some(TIME_MS_MAX)) {
            let most_s = TIME_MS_MAX / 1000;
            return Err(format!("{name} is at most a day ({most_s} s)"));
        }
        let limits = [self.at_once, self.at_once_per_host, self.at_once_per_link];
        if limits.contains(&Some(0)) {
            return Err(
                "at least one migration at a time; to stop them: --automation manual".to_owned(),
            );
        }
        if self.at_once_per_host > Some(MOVES_MAX as u32) {
            return Err(format!(
                "a host takes part in at most {MOVES_MAX} migrations at a time"
            ));
        }
        set(&mut settings.automation, self.automation);
        set(&mut settings.threshold, self.threshold);
        set(&mut settings.round_ms, self.round_ms);
        set(&mut settings.at_once, self.at_once);
        set(&mut settings.at_once_per_host, self.at_once_per_host);
        set(&mut settings.at_once_per_link, self.at_once_per_link);
        set(&mut settings.smoothing.hold_ms, self.hold_ms);
        set(&mut settings.smoothing.rise_ms, self.rise_ms);
        set(&mut settings.smoothing.fall_ms, self.fall_ms);
        Ok(())
    }
}

/// All that can be set, for people.
pub fn words(settings: &DrsSettings) -> String {
    let seconds = |ms: u64| ms / 1000;
    let smoothing = &settings.smoothing;
    format!(
        "automation {}, threshold {}, a round every {} s\n\
         migrations at once: {}, {} per host, {} per link\n\
         demand: a jump counts after {} s, rises in {} s, falls in {} s",
        settings.automation.word(),
        settings.threshold,
        seconds(settings.round_ms),
        settings.at_once,
        settings.at_once_per_host,
        settings.at_once_per_link,
        seconds(smoothing.hold_ms),
        seconds(smoothing.rise_ms),
        seconds(smoothing.fall_ms)
    )
}

fn set<T: Copy>(to: &mut T, wish: Option<T>) {
    *to = wish.unwrap_or(*to);
}

/// `POST /v1/guests/{guest}/automation`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ChangeGuestDrs {
    /// Its own level; `None`: the cluster's.
    pub automation: Option<Automation>,
    /// `false`: it is never moved by itself, for whatever reason.
    pub movable: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_changes_and_nonsense_is_refused() {
        let mut settings = DrsSettings::default();
        let change = ChangeDrs {
            threshold: Some(5),
            hold_ms: Some(1000),
            ..ChangeDrs::default()
        };
        change.apply(&mut settings).unwrap();
        assert_eq!((settings.threshold, settings.smoothing.hold_ms), (5, 1000));
        assert_eq!(settings.round_ms, DrsSettings::default().round_ms);
        for wrong in [
            ChangeDrs {
                threshold: Some(6),
                ..ChangeDrs::default()
            },
            ChangeDrs {
                round_ms: Some(1),
                ..ChangeDrs::default()
            },
            // What does not fit into a policy file would make it unreadable.
            ChangeDrs {
                rise_ms: Some(u64::MAX),
                ..ChangeDrs::default()
            },
            ChangeDrs {
                at_once_per_host: Some(MOVES_MAX as u32 + 1),
                ..ChangeDrs::default()
            },
            ChangeDrs {
                at_once: Some(0),
                ..ChangeDrs::default()
            },
        ] {
            assert!(wrong.apply(&mut settings).is_err(), "{wrong:?}");
        }
    }
}
