//! A host in maintenance, and one that leaves the cluster.

use super::*;

fn told(brain: &mut Brain, now_us: u64, hosts: &[&str], change: impl Fn(&mut HostEntry)) {
    let Event::Inventory(mut inventory) = inventory(hosts, &["web"]) else {
        unreachable!("it is an inventory")
    };
    change(inventory.hosts.get_mut("a").unwrap());
    brain.step(now_us, Event::Inventory(inventory));
}

#[test]
fn a_leader_that_is_emptied_hands_the_lead_over_and_then_leaves() {
    let mut brain = Brain::new("a".into(), Incarnation([7; 16]));
    leader(&mut brain, 0, &["a", "b"], &["web"]);
    let released = |actions: &[Action]| {
        let release = |action: &Action| matches!(action, Action::ReleaseLeader { .. });
        actions.iter().any(release)
    };
    let leaves = |actions: &[Action]| actions.contains(&Action::Leave);
    let calm = b_is_well(&mut brain, 250, 3000, &[]);
    assert!(!released(&calm) && brain.leads());
    told(&mut brain, 3000 * MS, &["a", "b"], |a| a.leaving = true);
    assert!(!brain.leads());
    brain.step(3100 * MS, Event::LeaderLease(held(3, "b", 9)));
    let web = |now| Event::Local {
        guest: "web".into(),
        now,
    };
    let local = LocalGuest {
        epoch: 2,
        state: GuestState::Running { beating: true },
        running_ms: 0,
    };
    brain.step(3150 * MS, web(Some(local)));
    let full = brain.step(5000 * MS, Event::Tick);
    assert!(!leaves(&full), "a guest is here");
    brain.step(5100 * MS, web(None));
    assert!(leaves(&brain.step(6000 * MS, Event::Tick)));
    // The last host of a cluster has nobody to hand it to, and leaves as the leader.
    let mut last = Brain::new("a".into(), Incarnation([7; 16]));
    leader(&mut last, 0, &["a"], &["web"]);
    told(&mut last, 1, &["a"], |a| a.maintenance = true);
    assert!(last.leads() && !leaves(&last.step(2, Event::Tick)));
    told(&mut last, 3, &["a"], |a| a.leaving = true);
    assert!(leaves(&last.step(2_000_000, Event::Tick)));
}
