//! The lease protocol, and the simulator's power to see that a rule is missing.

use sim::harness::Span;
use sim::lease::{Broken, Rules, explore};

/// Enough for every kind of fault; `sim lease --histories 1000000` is the long run.
const HISTORIES: u64 = 800;
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
        Broken::Successor => 8_300,
        _ => 1,
    }
}

#[test]
fn every_broken_rule_is_noticed() {
    for rule in Broken::ALL {
        let (result, _) = explore(&span(search_from(rule), SEARCH), Rules(Some(rule)));
        let failure = result.expect_err(&format!("{rule:?} is broken and nothing happened"));
        println!("{rule:?}: seed {}: {}", failure.seed, failure.violation);
    }
}
