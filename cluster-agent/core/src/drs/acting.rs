//! Carrying out: which steps, and what became of them.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::feasible::check;
use super::{Automation, Decision, Drs, Numbered, emptying, plan_of};
use crate::balance::{Move, Recommendation, Why};
use crate::event::Level;
use crate::model::{Cluster, Guest, GuestId, HostMode};
use crate::settings::Settings;

/// A migration that takes longer than this, and than so many times what was predicted, is
/// not waited for any more.
const PATIENCE_US: u64 = 120_000_000;
const PATIENCE_TIMES: u64 = 10;
/// A guest whose migration failed is left alone for so long; doubles.
const FIRST_REST_US: u64 = 30_000_000;
/// At most that often.
const DOUBLINGS_MAX: u32 = 5;

/// A step that is being carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct UnderWay {
    /// Number of the recommendation.
    pub number: u64,
    /// The moves that are left; the first is under way.
    pub moves: Vec<Move>,
    /// When that began.
    pub since_us: u64,
    /// When it is given up.
    pub overdue_us: u64,
    /// Why, as the history has it.
    pub because: String,
}

/// Failures of a guest's migrations.
#[derive(Debug, Clone, Default)]
pub(super) struct Trouble {
    failures: u32,
    rests_until_us: u64,
    why: String,
}

/// A guest whose migration failed and that is not moved for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LeftAlone {
    /// Which.
    pub guest: GuestId,
    /// Why its migration failed.
    pub why: String,
    /// For how long still.
    pub for_ms: u64,
}

/// How the first move of a step stands.
enum Standing {
    Moving,
    Arrived,
    Over(String),
}

impl Drs {
    /// Begins what the operator approved, as far as that is possible now.
    pub(super) fn act_as_told(&mut self, now_us: u64, cluster: &Cluster) -> Vec<Decision> {
        let chosen = self.approved_steps(cluster);
        self.begin(now_us, chosen)
    }

    /// Chooses what to carry out after a new look, and begins it.
    pub(super) fn act(
        &mut self,
        now_us: u64,
        cluster: &Cluster,
        settings: &Settings,
    ) -> Vec<Decision> {
        let mut chosen = self.approved_steps(cluster);
        if chosen.is_empty() {
            chosen = self.automatic_steps(now_us, cluster, settings);
        }
        self.begin(now_us, chosen)
    }

    fn begin(&mut self, now_us: u64, chosen: Vec<Numbered>) -> Vec<Decision> {
        let mut decisions = Vec::new();
        for Numbered { number, step } in chosen {
            let patience_us = PATIENCE_US.max(step.migration_ms * 1000 * PATIENCE_TIMES);
            let because = format!("{}; {}", step.words, step.effect);
            let under_way = UnderWay {
                number,
                moves: step.moves,
                since_us: now_us,
                overdue_us: now_us + patience_us,
                because,
            };
            decisions.push(Decision::Record(
                Level::Info,
                format!("carries out {number}: {}", under_way.because),
            ));
            decisions.extend(under_way.order());
            self.under_way.push(under_way);
        }
        decisions
    }

    /// Approved steps that can be carried out together: a whole wave, or one.
    fn approved_steps(&self, cluster: &Cluster) -> Vec<Numbered> {
        let approved = |one: &&Numbered| self.approved.contains(&one.number);
        let all = &self.round.recommendations;
        let waves = self.round.waves.iter().map(|wave| {
            let steps = wave.iter().filter_map(|index| all.get(*index));
            steps.filter(approved).cloned().collect()
        });
        // There are no waves any more once a step of the plan is done.
        let single = all.iter().filter(approved).map(|one| vec![one.clone()]);
        let can_begin = |steps: &Vec<Numbered>| {
            let moves = steps.iter().flat_map(|one| one.step.moves.clone());
            !steps.is_empty() && check(cluster, &moves.collect::<Vec<Move>>()).is_ok()
        };
        waves.chain(single).find(can_begin).unwrap_or_default()
    }

    /// The first wave of what may be done without asking.
    fn automatic_steps(
        &mut self,
        now_us: u64,
        cluster: &Cluster,
        settings: &Settings,
    ) -> Vec<Numbered> {
        let mut willing = cluster.clone();
        let mut asked = false;
        for (name, guest) in &mut willing.guests {
            let leaves = guest.host.as_ref().is_some_and(|host| {
                let host = cluster.hosts.get(host);
                host.is_some_and(|host| host.mode == HostMode::Maintenance)
            });
            let may = (is_automatic(guest, settings) || leaves) && !self.rests(name, now_us);
            asked |= guest.movable && !may;
            guest.movable &= may;
        }
        let settled = self.is_settled(now_us, &settings.drs);
        let may_begin = |step: &Recommendation| {
            settled || matches!(step.why, Why::Rule { .. } | Why::Maintenance { .. })
        };
        if !asked {
            let first = self.round.waves.first().into_iter().flatten();
            let steps = first.map(|index| self.round.recommendations[*index].clone());
            return steps.filter(|one| may_begin(&one.step)).collect();
        }
        let emptying = self.emptying_steps(now_us, cluster, settings);
        if !emptying.is_empty() {
            return emptying;
        }
        if willing.guests.values().all(|guest| !guest.movable) {
            return Vec::new();
        }
        let plan = plan_of(&willing, &settings.balance());
        let first = plan.waves.first().into_iter().flatten();
        let steps = first.map(|index| &plan.steps[*index]);
        steps
            .filter(|step| may_begin(step))
            .map(|step| Numbered {
                number: self.round.number_of(step),
                step: step.clone(),
            })
            .collect()
    }

    /// Maintenance was asked for, so no guest's automation stands against it, not even that of
    /// one on another host which has to make room. What is to be done for rules beside it may
    /// have to be asked for, and is left out then.
    fn emptying_steps(
        &mut self,
        now_us: u64,
        cluster: &Cluster,
        settings: &Settings,
    ) -> Vec<Numbered> {
        let mut rested = cluster.clone();
        for (name, guest) in &mut rested.guests {
            guest.movable &= !self.rests(name, now_us);
        }
        let Some(plan) = emptying(&rested, &settings.balance()) else {
            return Vec::new();
        };
        let agreed = |step: &&Recommendation| {
            let mut guests = step.moves.iter().map(|one| &cluster.guests[&one.guest]);
            matches!(step.why, Why::Maintenance { .. })
                || guests.all(|guest| is_automatic(guest, settings))
        };
        let can_begin = |steps: &Vec<&Recommendation>| {
            let moves: Vec<Move> = steps.iter().flat_map(|step| step.moves.clone()).collect();
            !steps.is_empty() && check(cluster, &moves).is_ok()
        };
        let waves = plan.waves.iter().map(|wave| {
            let steps = wave.iter().map(|index| &plan.steps[*index]);
            steps.filter(agreed).collect()
        });
        let first = waves.into_iter().find(can_begin).unwrap_or_default();
        let numbered = first.into_iter().map(|step| Numbered {
            number: self.round.number_of(step),
            step: step.clone(),
        });
        numbered.collect()
    }

    /// Guests that are not moved for a while because their migrations failed.
    pub fn left_alone(&self, now_us: u64) -> Vec<LeftAlone> {
        let resting = self.troubles.iter();
        let resting = resting.filter(|(_, trouble)| now_us < trouble.rests_until_us);
        resting
            .map(|(guest, trouble)| LeftAlone {
                guest: guest.clone(),
                why: trouble.why.clone(),
                for_ms: (trouble.rests_until_us - now_us) / 1000,
            })
            .collect()
    }

    fn rests(&self, guest: &str, now_us: u64) -> bool {
        let trouble = self.troubles.get(guest);
        trouble.is_some_and(|trouble| now_us < trouble.rests_until_us)
    }

    /// What became of the steps under way.
    pub(super) fn follow(&mut self, now_us: u64, cluster: &Cluster) -> Vec<Decision> {
        self.troubles
            .retain(|guest, _| cluster.guests.contains_key(guest));
        let mut decisions = Vec::new();
        for mut step in core::mem::take(&mut self.under_way) {
            match step.standing(now_us, cluster) {
                Standing::Moving => self.under_way.push(step),
                Standing::Arrived => {
                    let one = step.moves.remove(0);
                    self.troubles.remove(&one.guest);
                    let text = format!(
                        "{} is on {} after {} ms",
                        one.guest,
                        one.to,
                        (now_us - step.since_us) / 1000
                    );
                    decisions.push(Decision::Record(Level::Info, text));
                    decisions.extend(self.go_on(now_us, cluster, step));
                }
                Standing::Over(why) => decisions.extend(self.stumble(now_us, &step, &why)),
            }
        }
        if self.under_way.is_empty() && !decisions.is_empty() {
            // What was planned beside these has changed with them.
            self.next_round_us = now_us;
        }
        decisions
    }

    /// The next move of a step whose first has arrived.
    fn go_on(&mut self, now_us: u64, cluster: &Cluster, mut step: UnderWay) -> Vec<Decision> {
        if step.moves.is_empty() {
            self.approved.remove(&step.number);
            self.round.remove(step.number);
            return Vec::new();
        }
        if let Err(why) = check(cluster, &step.moves[..1]) {
            return self.stumble(now_us, &step, &why);
        }
        step.overdue_us = now_us + (step.overdue_us - step.since_us);
        step.since_us = now_us;
        let order = step.order();
        self.under_way.push(step);
        Vec::from_iter(order)
    }

    /// A migration failed.
    pub fn failed(&mut self, now_us: u64, guest: &GuestId, why: &str) -> Vec<Decision> {
        let under_way = |step: &UnderWay| step.moves.first().is_some_and(|m| m.guest == *guest);
        let Some(index) = self.under_way.iter().position(under_way) else {
            return Vec::new();
        };
        let step = self.under_way.remove(index);
        self.next_round_us = now_us;
        self.stumble(now_us, &step, why)
    }

    fn stumble(&mut self, now_us: u64, step: &UnderWay, why: &str) -> Vec<Decision> {
        self.approved.remove(&step.number);
        let Some(one) = step.moves.first() else {
            return Vec::new();
        };
        let trouble = self.troubles.entry(one.guest.clone()).or_default();
        let rest_us = FIRST_REST_US << trouble.failures.min(DOUBLINGS_MAX);
        trouble.failures += 1;
        trouble.rests_until_us = now_us + rest_us;
        trouble.why = why.into();
        let text = format!(
            "{} did not get from {} to {}: {why}; it is left alone for {} s",
            one.guest,
            one.from,
            one.to,
            rest_us / 1_000_000
        );
        vec![Decision::Record(Level::Warning, text)]
    }
}

/// Is it moved without asking?
fn is_automatic(guest: &Guest, settings: &Settings) -> bool {
    guest.automation.unwrap_or(settings.drs.automation) == Automation::Full
}

impl UnderWay {
    fn order(&self) -> Option<Decision> {
        let one = self.moves.first()?.clone();
        let because = self.because.clone();
        Some(Decision::Move { one, because })
    }

    fn standing(&self, now_us: u64, cluster: &Cluster) -> Standing {
        let Some(one) = self.moves.first() else {
            return Standing::Arrived;
        };
        let at = cluster
            .guests
            .get(&one.guest)
            .and_then(|guest| guest.host.as_ref());
        match at {
            Some(at) if *at == one.to => Standing::Arrived,
            Some(at) if *at != one.from => Standing::Over(format!("it is on {at}")),
            None => Standing::Over("it does not run any more".into()),
            Some(_) if now_us >= self.overdue_us => {
                let waited_s = (now_us - self.since_us) / 1_000_000;
                Standing::Over(format!("it has not arrived after {waited_s} s"))
            }
            Some(_) => Standing::Moving,
        }
    }
}
