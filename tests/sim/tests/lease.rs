//! The lease protocol, and the simulator's power to see that a rule is missing.

use sim::harness::{Span, Violation};
use sim::lease::{ACT_AT_ONCE, Broken, LATE_WRITE, Rules, crash_everywhere, explore};

/// Enough for every kind of fault; `sim lease --histories 1000000` is the long run.
const HISTORIES: u64 = 800;
/// Short histories in which there is a crash before every step.
const CRASHED: u64 = 1;
/// A broken rule must show within this many histories.
const SEARCH: u64 = 20_000;

fn span(seed: u64, histories: u64) -> Span {
    Span {
        seed,
        histories,
        trace: false,
    }
}

#[test]
fn no_history_breaks_an_invariant() {
    let (result, tally) = explore(&span(1, HISTORIES), Rules::default());
    result.unwrap();
    assert!(
        tally.takeovers > HISTORIES / 10 && tally.hand_overs > HISTORIES / 20,
        "{tally:?}"
    );
}

/// Where rare coincidences are needed, the search starts shortly before one that is known.
fn search_from(rule: Broken) -> u64 {
    match rule {
        Broken::SentTime => 1_700,
        Broken::BootWait => 1_100,
        _ => 1,
    }
}

#[test]
fn a_crash_before_any_step_breaks_no_invariant() {
    let (result, tally) = crash_everywhere(&span(1, CRASHED), Rules::default());
    result.unwrap();
    println!("{tally:?}");
    assert!(tally.takeovers > 0 && tally.hand_overs > 0, "{tally:?}");
}

/// Without these rules two hosts run one guest: it is not enough that anything else goes wrong.
const KEEP_ONE: [Broken; 6] = [
    Broken::Watch,
    Broken::SentTime,
    Broken::Term,
    Broken::Gate,
    Broken::Commit,
    Broken::Fence,
];

fn is_double_run(violation: &Violation) -> bool {
    violation.what.contains(ACT_AT_ONCE) || violation.what.contains(LATE_WRITE)
}

#[test]
fn every_broken_rule_is_noticed() {
    for rule in Broken::ALL {
        let first = search_from(rule);
        let mut at = first;
        let failure = loop {
            let left = first + SEARCH - at;
            let (result, _) = explore(&span(at, left), Rules(Some(rule)));
            let failure = result.expect_err(&format!("{rule:?} is broken and nothing happened"));
            if !KEEP_ONE.contains(&rule) || is_double_run(&failure.violation) {
                break failure;
            }
            at = failure.seed + 1;
        };
        println!("{rule:?}: seed {}: {}", failure.seed, failure.violation);
    }
}
