//! A crash before every step of a short history, one at a time.

use super::Tally;
use super::plan::QUIET_US;
use super::rules::Rules;
use super::world::{Crash, Victim, World};
use crate::harness::{Failure, Span, Trace, Violation, run_parallel};

/// What can crash before a step.
const VICTIMS: [Victim; 3] = [Victim::Process, Victim::Host, Victim::HostForGood];
/// Steps after this are those of a guest that nothing happens to any more.
const LAST_US: u64 = 5 * QUIET_US;

/// For each seed of `span` one quiet history for every step of it and everything that can crash
/// before that.
pub fn crash_everywhere(span: &Span, rules: Rules) -> (Result<(), Failure>, Tally) {
    let mut tally = Tally::default();
    let one = |seed, trace: &mut Trace| {
        let mut sum = Tally::default();
        let steps = World::quiet(seed, rules, None).steps_until(LAST_US);
        for before in 1..=steps {
            for what in VICTIMS {
                let crash = Crash { before, what };
                let world = || World::quiet(seed, rules, Some(crash));
                let ran = world().run(&mut Trace::default());
                if ran.is_err() {
                    // Once more, for who wants to see it: of all of them nobody would.
                    let _ = world().run(trace);
                }
                sum.add(ran.map_err(|violation| Violation {
                    what: format!("{} ({crash:?})", violation.what),
                    ..violation
                })?);
            }
        }
        Ok(sum)
    };
    let result = run_parallel(span, one, |one| tally.add(one));
    (result, tally)
}
