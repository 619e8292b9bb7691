//! Admission control and placement, asked by the operator.

use super::*;

#[test]
fn admission_is_asked_of_the_leader_and_its_choice_is_kept() {
    let mut brain = Brain::new("a".into(), Incarnation([7; 16]));
    let web = String::from("web");
    let guest = Guest::sized(Resources::new(1000, 1024));
    assert_eq!(brain.admit(&web, &guest), None);
    leader(&mut brain, 0, &["a"], &["web"]);
    let large = Guest::sized(Resources::new(1000, 64 * 1024));
    let refusal = brain.admit(&"db".into(), &large).unwrap().unwrap_err();
    assert!(
        refusal.proved && !refusal.remedies.is_empty(),
        "{refusal:?}"
    );
    let seen = LeaseSeen::default();
    brain.step(
        1,
        Event::GuestLease {
            guest: web.clone(),
            seen,
        },
    );
    let admitted = brain.admit(&web, &guest).unwrap().unwrap();
    assert_eq!(admitted.host, "a");
    brain.expect(&web, &guest, admitted.host, "admission control");
    let actions = brain.step(2, Event::Tick);
    let because = actions.iter().find_map(|action| match action {
        Action::Start { because, .. } => Some(because.as_str()),
        _ => None,
    });
    assert!(because.unwrap().contains("admission control chose a"));
    assert!(!brain.is_placed_by_hand(&guest));
    let by_hand = Guest {
        automation: Some(crate::drs::Automation::Manual),
        ..guest.clone()
    };
    assert!(brain.is_placed_by_hand(&by_hand));
    let mut new = |size: &Guest, host: &str| brain.place_on(&"new".into(), size, &host.into());
    assert_eq!(new(&guest, "a"), Ok(None));
    for (size, host, part) in [(&guest, "b", "no host b"), (&large, "a", "a has ")] {
        let why = new(size, host).unwrap_err();
        assert!(why.contains(part), "{why}");
    }
    let reserve = brain.reserve(Resources::new(1000, 4096)).unwrap();
    assert_eq!(reserve.fits, 3, "{}", reserve.words);
}

#[test]
fn what_was_promised_to_one_guest_is_not_promised_to_another() {
    let mut brain = Brain::new("a".into(), Incarnation([7; 16]));
    leader(&mut brain, 0, &["a"], &["web"]);
    let half = Guest::sized(Resources::new(1000, 7 * 1024));
    let names = ["one", "two", "three"].map(String::from);
    for name in &names[..2] {
        let admitted = brain.admit(name, &half).unwrap().unwrap();
        brain.expect(name, &half, admitted.host, "admission control");
    }
    let refused = brain.admit(&names[2], &half).unwrap().unwrap_err();
    assert!(refused.because.contains("MiB") || refused.because.contains("GiB"));
    assert!(brain.place_on(&names[2], &half, &"a".into()).is_err());
    assert!(
        brain.admit(&names[0], &half).unwrap().is_ok(),
        "who was promised it may ask again"
    );
    brain.step(11_000_000, Event::Tick);
    assert!(
        brain.admit(&names[2], &half).unwrap().is_ok(),
        "nobody made use of it"
    );
}
