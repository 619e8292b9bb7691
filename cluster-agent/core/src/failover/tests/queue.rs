//! Guests that have to wait hide nobody.

use super::*;

/// Guests of the first kind want more than any host has; the last, which comes after them, fits.
fn crowd(waiting: usize) -> Stage {
    let mut stage = Stage::set(5);
    let large = Guest::sized(Resources::new(1000, 100_000));
    for index in 0..waiting {
        let name = format!("large-{index:04}");
        stage.cluster.guests.insert(name, large.clone());
    }
    let names = stage.cluster.guests.keys().cloned();
    let lost = names.map(|name| (name, Whereabouts::Lost(1, Loss::Free)));
    stage.whereabouts = lost.collect();
    stage
}

#[test]
fn however_many_fit_nowhere_the_one_that_fits_is_found() {
    for waiting in [10, 63, 64, 65, 1000] {
        let stage = crowd(waiting);
        let mut failover = Failover::default();
        let steps = waiting / MAX_MISSES_PER_STEP + 1;
        let mut steps = (0..steps as u64).flat_map(|step| failover.step(step, &stage.now()));
        let found = |decision: &Decision| matches!(decision, Decision::Order { guest, .. } if guest == "web");
        assert!(steps.any(|decision| found(&decision)), "behind {waiting}");
    }
}

#[test]
fn each_of_many_is_tried_again_when_room_appears() {
    let mut stage = crowd(1000);
    let mut failover = Failover::default();
    for step in 0..100 {
        failover.step(step * SECOND, &stage.now());
    }
    let fits = Guest::sized(Resources::new(1000, 1024));
    for last in ["large-0999", "large-0500", "large-0000"] {
        stage.cluster.guests.insert(last.to_string(), fits.clone());
        let mut steps = (100..120).flat_map(|step| failover.step(step * SECOND, &stage.now()));
        let found = |decision: &Decision| matches!(decision, Decision::Order { guest, .. } if guest == last);
        assert!(steps.any(|decision| found(&decision)), "{last}");
    }
}
