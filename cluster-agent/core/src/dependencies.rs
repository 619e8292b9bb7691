//! Which guest starts after which, and how far that one has to be.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::model::{Guest, GuestId, Readiness};

/// Where the waiting would go round in a circle if `guest` started after these: the guests on
/// it from `guest` to `guest`. Nobody in a circle could be the first.
pub fn circle(
    guests: &BTreeMap<GuestId, Guest>,
    guest: &GuestId,
    after: &BTreeMap<GuestId, Readiness>,
) -> Option<Vec<GuestId>> {
    let mut came_from: BTreeMap<&GuestId, &GuestId> = BTreeMap::new();
    let mut open: Vec<&GuestId> = Vec::new();
    for before in after.keys() {
        came_from.insert(before, guest);
        open.push(before);
    }
    while let Some(next) = open.pop() {
        if next == guest {
            return Some(way_back(&came_from, guest));
        }
        for before in guests
            .get(next)
            .into_iter()
            .flat_map(|one| one.after.keys())
        {
            if !came_from.contains_key(before) {
                came_from.insert(before, next);
                open.push(before);
            }
        }
    }
    None
}

fn way_back(came_from: &BTreeMap<&GuestId, &GuestId>, guest: &GuestId) -> Vec<GuestId> {
    let mut way = Vec::from([guest.clone()]);
    let mut at = guest;
    while let Some(&before) = came_from.get(at) {
        way.push(before.clone());
        if before == guest {
            break;
        }
        at = before;
    }
    way.reverse();
    way
}

/// A circle in words.
pub fn circle_words(circle: &[GuestId]) -> String {
    let waits: Vec<String> = circle
        .windows(2)
        .map(|pair| format!("{} after {}", pair[0], pair[1]))
        .collect();
    format!(
        "they would wait for each other ({}), so that none could be the first; \
         take one of these dependencies away",
        waits.join(", ")
    )
}

/// One dependency in words: `db`, `db (heartbeat)`, `db (30 s)`.
pub fn words(guest: &str, until: Readiness) -> String {
    match until {
        Readiness::Running => guest.to_string(),
        Readiness::Heartbeat => format!("{guest} (heartbeat)"),
        Readiness::DelayMs(ms) => format!("{guest} ({} s)", ms / 1000),
    }
}

/// Does `guest` wait for `other`, directly or through others? Then `other` cannot wait for it.
pub(crate) fn depends_on(
    guests: &BTreeMap<GuestId, Guest>,
    guest: &GuestId,
    other: &GuestId,
) -> bool {
    let mut seen: BTreeSet<&GuestId> = BTreeSet::new();
    let mut open: Vec<&GuestId> = Vec::from([guest]);
    while let Some(next) = open.pop() {
        let Some(spec) = guests.get(next) else {
            continue;
        };
        for before in spec.after.keys() {
            if before == other {
                return true;
            }
            if seen.insert(before) {
                open.push(before);
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Resources;

    fn guests(all: &[(&str, &[&str])]) -> BTreeMap<GuestId, Guest> {
        let guest = |(name, after): &(&str, &[&str])| {
            let after = after
                .iter()
                .map(|before| (before.to_string(), Readiness::Running));
            let guest = Guest {
                after: after.collect(),
                ..Guest::sized(Resources::default())
            };
            (name.to_string(), guest)
        };
        all.iter().map(guest).collect()
    }

    fn after(names: &[&str]) -> BTreeMap<GuestId, Readiness> {
        let all = names
            .iter()
            .map(|name| (name.to_string(), Readiness::Running));
        all.collect()
    }

    #[test]
    fn a_circle_is_found_and_told_from_its_beginning() {
        let all = guests(&[
            ("web", &["app"]),
            ("app", &["db"]),
            ("db", &[]),
            ("log", &[]),
        ]);
        assert_eq!(circle(&all, &"db".to_string(), &after(&["log"])), None);
        let found = circle(&all, &"db".to_string(), &after(&["log", "web"])).unwrap();
        assert_eq!(found, ["db", "web", "app", "db"]);
        assert!(circle_words(&found).starts_with(
            "they would wait for each other (db after web, web after app, app after db)"
        ));
        let itself = circle(&all, &"db".to_string(), &after(&["db"])).unwrap();
        assert_eq!(itself, ["db", "db"]);
    }

    #[test]
    fn a_circle_elsewhere_is_no_concern_and_no_endless_search() {
        let all = guests(&[("a", &["b"]), ("b", &["a"]), ("c", &[])]);
        assert_eq!(circle(&all, &"c".to_string(), &after(&["a"])), None);
        assert!(depends_on(&all, &"a".to_string(), &"b".to_string()));
        assert!(!depends_on(&all, &"a".to_string(), &"c".to_string()));
    }
}
