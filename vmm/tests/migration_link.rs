//! Migrations over a link that is cut, a connection at a time: the guest goes on where it was, at once.

mod moving;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use link::{Cut, Link};
use moving::{boot_probe, migrate_until, verify_all_pages};
use shared_storage::trust::Authority;
use vmm::guest::Guest;
use vmm_core::lifecycle::State;

const CONTROL: usize = 0;
/// The second of two.
const DATA: usize = 2;

/// A move over a link that is cut there; how long after that the source was through with it.
fn cut_off(guest: &Arc<Guest>, cut: Cut, tls_dir: Option<&Path>) -> Duration {
    let mut link = None;
    let (moved, over) = migrate_until(guest, |wish| {
        let made = Link::to(wish.to.parse().unwrap(), Some(cut)).unwrap();
        wish.to = link.insert(made).address().to_string();
        wish.goal.accept_longer = true;
        wish.tls_dir = tls_dir.map(|dir| dir.to_string_lossy().into_owned());
    });
    let link = link.unwrap();
    let why = moved.map(|moved| moved.summary).unwrap_err();
    let cut_at = link.cut_at();
    let cut_at = cut_at.unwrap_or_else(|| panic!("{cut:?}: {why}, {:?}", link.carried()));
    assert_eq!(guest.state(), Some(State::Running), "{cut:?}: {why}");
    let took = over.saturating_duration_since(cut_at);
    println!(
        "{cut:?}, TLS {}: {why}; the guest was free after {took:?}",
        tls_dir.is_some()
    );
    took
}

#[test]
fn a_lost_connection_leaves_the_guest_where_it_is_and_free_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let settings = "fill_mib=32 hot_mib=4 rate_mib_s=50";
    let Some(guest) = boot_probe(dir.path(), settings, 1, 64) else {
        return;
    };
    let tls = dir.path().join("tls");
    let authority = Authority::open_or_create(&tls).unwrap();
    authority.mint("a").unwrap().write(&tls.join("a")).unwrap();
    let tls = tls.join("a");
    // The offer, rounds that measure, a draft, the state; a handshake, a part of memory, most of it.
    let control = [1, 100, 2500, 6000].map(|after_bytes| (CONTROL, after_bytes));
    let data = [1, 30, 1 << 20, 8 << 20].map(|after_bytes| (DATA, after_bytes));
    let mut took = Vec::new();
    for tls_dir in [None, Some(&*tls)] {
        for (connection, after_bytes) in control.into_iter().chain(data) {
            let cut = Cut {
                connection,
                after_bytes,
            };
            took.push(cut_off(&guest, cut, tls_dir));
        }
    }
    took.sort();
    println!(
        "from the cut until the guest is free: median {:?}, longest {:?}",
        took[took.len() / 2],
        took.last()
    );
    verify_all_pages(&guest);
    guest.end();
}
