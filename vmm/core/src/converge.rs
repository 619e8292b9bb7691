//! When to stop copying memory under a running guest and switch over to the target.
//!
//! After each round the source knows how much was dirtied meanwhile and how fast the link
//! is. From that follows how long the guest would stand still if it were stopped now:
//!
//! ```text
//! blackout = fixed + dirty / rate
//! ```
//!
//! where `fixed` is the measured cost of stopping, moving the machine's state and starting.
//! The policy switches over once that is short enough and one more round would not make it
//! noticeably shorter. It goes on while rounds still shrink, and where memory would take more than
//! all the rest a little longer. When they do not, it holds those
//! processors back that dirty memory, step by step; and when that does not help, it does what
//! the operator chose: give up, or accept the best there is.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// No migration takes more rounds than this.
pub const ROUNDS_MAX: u32 = 40;
/// A round that leaves more than so many per cent of the round before does not shrink.
const SHRINKS_BELOW_PERCENT: u64 = 90;
/// So many rounds in a row may fail to shrink; noise of the guest looks like that.
const STUCK_ROUNDS_MAX: u32 = 4;
/// When the blackout is short enough already: another round is worth its while if memory is
/// more than so many per cent of the fixed cost.
const NOTICEABLE_PERCENT: u64 = 10;
/// First guess of `fixed` before anything was measured, in microseconds.
const FIXED_US: u64 = 2_000;
/// So many rounds in a row may fail to shrink before processors are held back (further) ...
const FREE_ROUNDS_MAX: u32 = 1;
/// ... and from so many rounds on, every few rounds, even if they shrink, because too slowly ...
const LATE_ROUND: u32 = ROUNDS_MAX / 2;
const LATE_EVERY: u32 = 3;
/// ... by these shares of their time, in per cent.
const THROTTLE_PERCENT: [u8; 5] = [40, 70, 85, 95, 99];
/// Those are held back that wait for pages at least so many per cent as often as the worst.
const DIRTIER_PERCENT: u64 = 10;
/// Predictions leave room for what the link may do: per cent added.
const MARGIN_PERCENT: u64 = 15;

/// What an operator wants of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Goal {
    /// The guest shall not stand still for longer, in microseconds.
    pub blackout_max_us: u64,
    /// When that cannot be had: `false` gives up and leaves the guest where it is, `true`
    /// moves it with the shortest blackout that was seen possible.
    pub accept_longer: bool,
}

impl Default for Goal {
    fn default() -> Self {
        Self {
            blackout_max_us: 10_000,
            accept_longer: false,
        }
    }
}

/// What a round showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// Bytes sent in it.
    pub sent_bytes: u64,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// Bytes that were dirtied meanwhile and have to be sent again.
    pub dirty_bytes: u64,
}

impl Round {
    /// How fast memory was dirtied, in bytes per second.
    pub fn dirty_rate(&self) -> u64 {
        self.dirty_bytes.saturating_mul(1_000_000) / self.took_us.max(1)
    }
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Another round.
    Continue,
    /// Another round, with [`Converge::throttle_percents`] from now on.
    Throttle,
    /// Stop the guest and move it; it will stand still for about so long.
    SwitchOver {
        /// Predicted blackout, in microseconds.
        predicted_us: u64,
    },
    /// Leave the guest where it is: it dirties memory faster than it can be sent, or stopping
    /// and moving its state alone takes too long.
    GiveUp {
        /// The blackout that it would have taken, in microseconds.
        predicted_us: u64,
    },
}

/// The policy, from round to round.
#[derive(Debug, Clone)]
pub struct Converge {
    goal: Goal,
    fixed_us: u64,
    rounds: u32,
    stuck: u32,
    last_dirty: u64,
    best_rate: u64,
    throttle_steps: usize,
    throttle_percents: Vec<u8>,
}

impl Converge {
    /// A migration that has not begun. `fixed_us`: what stopping, moving the state and
    /// starting took the last time on this host, if that is known.
    pub fn new(goal: Goal, fixed_us: Option<u64>) -> Self {
        Self {
            goal,
            fixed_us: fixed_us.unwrap_or(FIXED_US),
            rounds: 0,
            stuck: 0,
            last_dirty: u64::MAX,
            best_rate: 0,
            throttle_steps: 0,
            throttle_percents: Vec::new(),
        }
    }

    /// The blackout if the guest were stopped with so much left, in microseconds.
    pub fn predict_us(&self, dirty_bytes: u64) -> u64 {
        let exact = self.fixed_us.saturating_add(self.send_us(dirty_bytes));
        exact.saturating_add(exact / 100 * MARGIN_PERCENT)
    }

    fn send_us(&self, dirty_bytes: u64) -> u64 {
        dirty_bytes.saturating_mul(1000) / self.best_rate.max(1)
    }

    /// What stopping, moving the state and starting takes, as measured by now, in microseconds.
    pub fn set_fixed(&mut self, fixed_us: u64) {
        self.fixed_us = fixed_us;
    }

    /// The latest rate of the link, in bytes per millisecond; 0 before the first round.
    pub fn rate_bytes_per_ms(&self) -> u64 {
        self.best_rate
    }

    /// By how much each processor is held back, in per cent of its time; empty: none is.
    pub fn throttle_percents(&self) -> &[u8] {
        &self.throttle_percents
    }

    /// A round is over: what now? `faults`: how often each processor waited for a page in it.
    pub fn after(&mut self, round: Round, faults: &[u64]) -> Decision {
        self.rounds += 1;
        self.learn_rate(round);
        let predicted_us = self.predict_us(round.dirty_bytes);
        let shrinks = u128::from(round.dirty_bytes) * 100
            <= u128::from(self.last_dirty) * u128::from(SHRINKS_BELOW_PERCENT);
        let memory_us = self.send_us(round.dirty_bytes);
        let is_noticeable = memory_us > self.fixed_us / 100 * NOTICEABLE_PERCENT;
        let worth_another = is_noticeable
            && self.rounds < ROUNDS_MAX
            && (shrinks || (memory_us > self.fixed_us && self.may_shrink()));
        let is_short = predicted_us <= self.goal.blackout_max_us;
        if is_short && !worth_another {
            return Decision::SwitchOver { predicted_us };
        }
        if !is_noticeable {
            // What is left takes so long whatever is done about memory.
            return self.resigned(predicted_us);
        }
        self.stuck = if shrinks { 0 } else { self.stuck + 1 };
        self.last_dirty = self.last_dirty.min(round.dirty_bytes);
        let is_late = self.rounds >= LATE_ROUND && self.rounds.is_multiple_of(LATE_EVERY);
        let must_tighten = self.rounds < ROUNDS_MAX && (is_late || self.stuck > FREE_ROUNDS_MAX);
        if must_tighten && self.tighten(faults) {
            self.stuck = 0;
            return Decision::Throttle;
        }
        if self.rounds < ROUNDS_MAX && self.stuck <= STUCK_ROUNDS_MAX {
            return Decision::Continue;
        }
        self.resigned(predicted_us)
    }

    /// The round did not shrink: might the next one? One round may be noise, and a guest that is
    /// held back already is better moved soon than spared the next step.
    fn may_shrink(&self) -> bool {
        let can_tighten = (1..THROTTLE_PERCENT.len()).contains(&self.throttle_steps);
        self.rounds < LATE_ROUND && (self.stuck < FREE_ROUNDS_MAX || can_tighten)
    }

    /// It does not get any better.
    fn resigned(&self, predicted_us: u64) -> Decision {
        if self.goal.accept_longer || predicted_us <= self.goal.blackout_max_us {
            Decision::SwitchOver { predicted_us }
        } else {
            Decision::GiveUp { predicted_us }
        }
    }

    /// Hold those processors back further that dirty memory; `false` if nothing is left to do.
    fn tighten(&mut self, faults: &[u64]) -> bool {
        let worst = faults.iter().copied().max().unwrap_or(0);
        let Some(percent) = THROTTLE_PERCENT.get(self.throttle_steps) else {
            return false;
        };
        if worst == 0 {
            return false;
        }
        self.throttle_steps += 1;
        self.throttle_percents.resize(faults.len(), 0);
        for (held_back, count) in self.throttle_percents.iter_mut().zip(faults) {
            if u128::from(*count) * 100 >= u128::from(worst) * u128::from(DIRTIER_PERCENT) {
                *held_back = *percent;
            }
        }
        true
    }

    /// Short rounds say little about the link, because waiting for the other side and looking
    /// at untouched memory dominate them; but it carries at least what it was seen to carry.
    fn learn_rate(&mut self, round: Round) {
        const TELLING_BYTES: u64 = 4 << 20;
        let rate = round.sent_bytes.saturating_mul(1000) / round.took_us.max(1);
        if rate > self.best_rate || round.sent_bytes >= TELLING_BYTES {
            self.best_rate = rate;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Plays a guest that dirties `dirty_rate` bytes/ms of at most `hot` bytes over a link of
    /// `link` bytes/ms. Returns the decision, what was left then, and the rounds it took.
    fn play(total: u64, hot: u64, dirty_rate: u64, link: u64, goal: Goal) -> (Decision, u64, u32) {
        let mut policy = Converge::new(goal, Some(2_000));
        let mut left = total;
        for round in 1.. {
            let took_us = (left * 1000 / link).max(1);
            let dirtied = (dirty_rate.saturating_mul(took_us) / 1000).min(hot);
            let decision = policy.after(
                Round {
                    sent_bytes: left,
                    took_us,
                    dirty_bytes: dirtied,
                },
                &[],
            );
            left = dirtied;
            if decision != Decision::Continue {
                return (decision, left, round);
            }
        }
        unreachable!("the loop ends by returning")
    }

    #[test]
    fn an_idle_guest_moves_after_one_round() {
        let (decision, _, rounds) = play(1 << 30, 0, 0, 1 << 20, Goal::default());
        assert!(matches!(decision, Decision::SwitchOver { .. }));
        assert_eq!(rounds, 1);
    }

    #[test]
    fn a_first_round_over_untouched_memory_does_not_spoil_the_rate() {
        let mut policy = Converge::new(Goal::default(), None);
        let mut after = |sent_bytes, took_us, dirty_bytes| {
            let round = Round {
                sent_bytes,
                took_us,
                dirty_bytes,
            };
            policy.after(round, &[])
        };
        // Half a second to look at 32 GiB, of which next to nothing travels.
        assert_eq!(after(1 << 20, 500_000, 256 << 10), Decision::Continue);
        let decision = after(256 << 10, 1_000, 256 << 10);
        assert!(
            matches!(decision, Decision::SwitchOver { .. }),
            "{decision:?}"
        );
    }

    #[test]
    fn a_short_round_more_makes_the_blackout_shorter() {
        // 4 MiB would be short enough; the round that sends them leaves a twentieth.
        let hot = 4 << 20;
        let (decision, left, rounds) = play(1 << 30, hot, 50 << 10, 1 << 20, Goal::default());
        assert!(matches!(decision, Decision::SwitchOver { .. }));
        assert_eq!(rounds, 2);
        assert!(left < hot / 10, "{left}");
    }

    #[test]
    fn a_guest_that_outruns_the_link_stays_or_moves_as_was_chosen() {
        let hot = 512 << 20;
        let (decision, ..) = play(1 << 30, hot, 10 << 20, 1 << 20, Goal::default());
        assert!(matches!(decision, Decision::GiveUp { .. }));
        let goal = Goal {
            accept_longer: true,
            ..Goal::default()
        };
        let (decision, ..) = play(1 << 30, hot, 10 << 20, 1 << 20, goal);
        assert!(matches!(decision, Decision::SwitchOver { .. }));
    }

    /// The same with a guest of two processors of which the second writes, and rests as it is
    /// told to.
    fn play_throttled(hot: u64, dirty_rate: u64, link: u64) -> (Decision, Converge) {
        let mut policy = Converge::new(Goal::default(), Some(2_000));
        let mut left = 1 << 30;
        loop {
            let took_us = (left * 1000 / link).max(1);
            let held_back = policy.throttle_percents().get(1).copied().unwrap_or(0);
            let rate = dirty_rate * u64::from(100 - held_back) / 100;
            let dirty_bytes = (rate.saturating_mul(took_us) / 1000).min(hot);
            let round = Round {
                sent_bytes: left,
                took_us,
                dirty_bytes,
            };
            let decision = policy.after(round, &[1, dirty_bytes / 4096]);
            left = dirty_bytes;
            if !matches!(decision, Decision::Continue | Decision::Throttle) {
                return (decision, policy);
            }
        }
    }

    #[test]
    fn only_the_processor_that_dirties_is_held_back() {
        let link = 1 << 20;
        let (decision, policy) = play_throttled(512 << 20, 4 * link, link);
        assert!(matches!(decision, Decision::SwitchOver { .. }));
        let percents = policy.throttle_percents();
        assert_eq!(percents[0], 0);
        assert!(percents[1] > 50, "{percents:?}");
    }

    #[test]
    fn a_guest_that_converges_by_itself_is_left_alone() {
        let link = 1 << 20;
        let (decision, policy) = play_throttled(512 << 20, link / 2, link);
        assert!(matches!(decision, Decision::SwitchOver { .. }));
        assert_eq!(policy.throttle_percents(), []);
    }

    #[test]
    fn a_fixed_cost_beyond_the_goal_is_not_fought_with_rounds() {
        let round = Round {
            sent_bytes: 1 << 30,
            took_us: 1_000_000,
            dirty_bytes: 1 << 20,
        };
        for (accept_longer, moves) in [(false, false), (true, true)] {
            let goal = Goal {
                accept_longer,
                ..Goal::default()
            };
            let mut policy = Converge::new(goal, None);
            policy.set_fixed(50_000);
            let decision = policy.after(round, &[1]);
            assert_eq!(matches!(decision, Decision::SwitchOver { .. }), moves);
            assert_ne!(matches!(decision, Decision::GiveUp { .. }), moves);
        }
    }

    proptest! {
        #[test]
        fn holding_back_moves_a_guest_that_dirties_ten_times_what_the_link_carries(
            hot in 1u64 << 20..1 << 32, tenths in 1u64..100, link in 1u64 << 14..1 << 24,
        ) {
            let (decision, policy) = play_throttled(hot, link * tenths / 10, link);
            prop_assert!(matches!(decision, Decision::SwitchOver { .. }), "{:?}", decision);
            prop_assert!(policy.rounds <= ROUNDS_MAX);
        }

        #[test]
        fn it_ends_for_every_dirty_rate(
            total in 1u64..1 << 40, hot in 0u64..1 << 40, dirty_rate: u64,
            link in 1u64..1 << 30, accept_longer: bool,
        ) {
            let goal = Goal { accept_longer, ..Goal::default() };
            let (.., rounds) = play(total, hot, dirty_rate, link, goal);
            prop_assert!(rounds <= ROUNDS_MAX);
        }

        /// Whatever a guest, a link or a clock comes up with.
        #[test]
        fn it_ends_for_every_sequence_of_rounds(
            rounds in prop::collection::vec((any::<[u64; 3]>(), any::<[u64; 2]>()), 1..60),
            accept_longer: bool, fixed_us: u64,
        ) {
            let mut policy = Converge::new(Goal { accept_longer, ..Goal::default() }, None);
            policy.set_fixed(fixed_us);
            for number in 1..=ROUNDS_MAX as usize {
                let ([sent_bytes, took_us, dirty_bytes], faults) = rounds[number % rounds.len()];
                let round = Round { sent_bytes, took_us, dirty_bytes };
                let decision = policy.after(round, &faults);
                if !matches!(decision, Decision::Continue | Decision::Throttle) {
                    return Ok(());
                }
            }
            prop_assert!(false, "{} rounds were not enough", ROUNDS_MAX);
        }

        /// No round is like the one before it: the link carries some per cent more or less, and
        /// what is left when the guest stops takes as long as the link is then.
        #[test]
        fn it_never_promises_much_less_than_it_takes_on_a_link_that_wavers(
            total in 64u64 << 20..1 << 34, hot in 0u64..1 << 30, dirty_rate in 0u64..1 << 22,
            link in 1u64 << 14..1 << 22, wavers in prop::collection::vec(90u64..=110, 8),
            fixed_us in 500u64..20_000,
        ) {
            let goal = Goal { blackout_max_us: 100_000, accept_longer: true };
            let mut policy = Converge::new(goal, Some(fixed_us));
            let mut left = total;
            for number in 0.. {
                let link_now = link * wavers[number % wavers.len()] / 100;
                let took_us = (left * 1000 / link_now).max(1);
                let dirty_bytes = (dirty_rate * took_us / 1000).min(hot);
                let decision = policy.after(Round { sent_bytes: left, took_us, dirty_bytes }, &[1]);
                left = dirty_bytes;
                if let Decision::SwitchOver { predicted_us } = decision {
                    let link_then = link * wavers[(number + 1) % wavers.len()] / 100;
                    let takes_us = fixed_us + left * 1000 / link_then;
                    prop_assert!(predicted_us * 120 / 100 >= takes_us, "{predicted_us} {takes_us}");
                    return Ok(());
                }
            }
        }

        #[test]
        fn it_never_promises_less_than_it_takes(
            total in 4u64 << 20..1 << 36, hot in 0u64..1 << 32, dirty_rate in 0u64..1 << 24,
            link in 1u64 << 10..1 << 24,
        ) {
            let (decision, left, _) = play(total, hot, dirty_rate, link, Goal::default());
            if let Decision::SwitchOver { predicted_us } = decision {
                let takes_us = 2_000 + left * 1000 / link;
                prop_assert!(predicted_us * 120 / 100 >= takes_us);
            }
        }
    }
}
