//! Live migration on the local KVM: the probe guest moves between two machines of this
//! process over loopback, and says from inside what it noticed.

mod moving;

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use moving::{
    PATIENCE, boot_probe, count, migrate, report, verify_all_pages, verify_all_pages_at_rest,
    wait_for, wish,
};
use probe::report::Report;
use vm_memory::{Bytes, GuestAddress};
use vmm::guest::{GuestError, Hold};
use vmm::machine::Inspect;
use vmm::migration::dirty::{PAGE_BYTES, SlotBitmap, Tracker};
use vmm::migration::source::Outcome;
use vmm::notice::Notice;
use vmm::vcpu::state;
use vmm_core::control::Happening;
use vmm_core::lifecycle::State;
use vmm_core::migration::{Migrate, Phase};

/// A busy machine does not get through all of them in time; so many it must.
const FEWEST: u64 = 6;
const TO_AND_FRO_MAX: Duration = Duration::from_secs(15);

#[test]
fn a_guest_moves_and_every_page_arrives() {
    let dir = tempfile::tempdir().unwrap();
    for (settings, cpus) in [
        ("fill_mib=1", 1),
        ("fill_mib=64 hot_mib=4 rate_mib_s=50", 1),
        ("fill_mib=64 hot_mib=16 rate_mib_s=50", 2),
    ] {
        let Some(guest) = boot_probe(dir.path(), settings, cpus, 256) else {
            return;
        };
        let moved = migrate(&guest, |wish| wish.goal.accept_longer = true).unwrap();
        assert_eq!(
            guest.state(),
            Some(State::Paused),
            "the source stands still"
        );
        guest.end();
        verify_all_pages(&moved.guest);
        println!("{settings}, {cpus} vCPUs: {:?}", moved.summary);
        assert!(moved.summary.verified);
        assert!(moved.summary.guest_blackout_us <= moved.summary.blackout_us);
    }
}

#[test]
fn a_guest_that_an_operator_has_paused_arrives_paused() {
    let dir = tempfile::tempdir().unwrap();
    let Some(guest) = boot_probe(dir.path(), "fill_mib=4", 1, 64) else {
        return;
    };
    guest.hold(Hold::Operator).unwrap();
    let moved = migrate(&guest, |wish| wish.goal.accept_longer = true).unwrap();
    assert_eq!(moved.guest.state(), Some(State::Paused));
    guest.end();
    assert!(moved.guest.unhold(Hold::Operator).unwrap());
    verify_all_pages(&moved.guest);
}

#[test]
fn whoever_listens_hears_how_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let Some(guest) = boot_probe(dir.path(), "fill_mib=4", 1, 64) else {
        return;
    };
    let mut events = guest.events().listen();
    let moved = migrate(&guest, |wish| wish.goal.accept_longer = true).unwrap();
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let Happening::Migration(progress) = event.what {
            told.push(*progress);
        }
    }
    let [first, .., last] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!((first.phase, first.round), (Phase::Copying, 0));
    assert_eq!(last.phase, Phase::Done);
    assert_eq!(last.summary.as_ref(), Some(&moved.summary));
    let rounds: Vec<u32> = told.iter().map(|progress| progress.round).collect();
    assert!(rounds.is_sorted() && rounds.contains(&1), "{rounds:?}");
    guest.end();
}

#[test]
fn a_guest_moves_to_and_fro() {
    let dir = tempfile::tempdir().unwrap();
    let settings = "fill_mib=16 hot_mib=2 rate_mib_s=20";
    let Some(mut guest) = boot_probe(dir.path(), settings, 1, 64) else {
        return;
    };
    let began = Instant::now();
    let wanted = count("GODWIT_PING_PONGS", 200);
    // Whoever asks for a number gets it.
    let fewest = count("GODWIT_PING_PONGS", FEWEST);
    let mut done = 0;
    while done < wanted && (done < fewest || began.elapsed() < TO_AND_FRO_MAX) {
        done += 1;
        let moved = migrate(&guest, |wish| wish.goal.accept_longer = true).unwrap();
        guest.end();
        guest = moved.guest;
    }
    println!("{done} times in {:?}", began.elapsed());
    verify_all_pages(&guest);
}

#[test]
fn a_guest_with_guests_of_its_own_is_refused_before_anybody_is_called() {
    const EFER_SVME: u64 = 1 << 12;
    let dir = tempfile::tempdir().unwrap();
    let Some(guest) = boot_probe(dir.path(), "fill_mib=1", 2, 64) else {
        return;
    };
    guest.hold(Hold::Operator).unwrap();
    // KVM shows its guests no SVM here, but takes the bit from us.
    let enable = |machine: &dyn Inspect| {
        machine.vcpus()[1].act(|processor, _| {
            let mut sregs = processor.get_sregs().unwrap();
            sregs.efer |= EFER_SVME;
            let _ = processor.set_sregs(&sregs);
            processor.get_sregs().unwrap().efer & EFER_SVME != 0
        })
    };
    if !guest.inspect(enable).unwrap() {
        return ground::skip("KVM does not take EFER.SVME");
    }
    let nobody = "127.0.0.1:1".to_owned();
    for dry_run in [true, false] {
        let wish = Migrate {
            dry_run,
            ..wish(nobody.clone())
        };
        let refused = guest.departures().depart(&guest, &wish).unwrap_err();
        assert!(refused.to_string().contains("modprobe -r"), "{refused}");
    }
    guest.end();
}

#[test]
fn a_running_guest_is_asked_for_guests_of_its_own_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let Some(guest) = boot_probe(dir.path(), "fill_mib=1", 2, 64) else {
        return;
    };
    let ask = |machine: &dyn Inspect| -> Vec<_> {
        let vcpus = machine.vcpus().iter();
        vcpus.map(|vcpu| vcpu.have_read(state::is_nested)).collect()
    };
    let answers = guest.inspect(ask).unwrap();
    let answers: Vec<_> = answers.iter().map(|a| a.recv_timeout(PATIENCE)).collect();
    assert_eq!(answers, [Ok(false), Ok(false)]);
    let turns = report(&guest).unwrap().vcpus[1].turns;
    wait_for(&guest, "that it goes on", |report| {
        report.vcpus[1].turns > turns
    });
    guest.end();
}

/// What a disk or the network writes into memory has to travel as what the guest writes.
#[test]
fn what_devices_write_counts_as_dirty_until_it_is_collected() {
    const AT: u64 = 48 << 20;
    let dir = tempfile::tempdir().unwrap();
    let Some(guest) = boot_probe(dir.path(), "fill_mib=1", 1, 64) else {
        return;
    };
    guest.hold(Hold::Operator).unwrap();
    let tracker = Tracker::start(guest.dirty_log().unwrap(), guest.memory().clone()).unwrap();
    let all = tracker.collect().unwrap();
    for bitmap in &all {
        tracker.clear(bitmap, 0, &bitmap.words).unwrap();
    }
    assert_eq!(tracker.dirty_bytes().unwrap(), 0);
    // As a device does: through the memory that it was given.
    let block = [0x5a; 3 * PAGE_BYTES as usize];
    guest
        .memory()
        .write_slice(&block, GuestAddress(AT))
        .unwrap();
    for _ in 0..2 {
        assert_eq!(tracker.dirty_bytes().unwrap(), 3 * PAGE_BYTES);
        assert_eq!(tracker.dirty_bytes_among(&all).unwrap(), 3 * PAGE_BYTES);
    }
    let collected: u64 = tracker
        .collect()
        .unwrap()
        .iter()
        .map(SlotBitmap::dirty_bytes)
        .sum();
    assert_eq!(
        (collected, tracker.dirty_bytes().unwrap()),
        (3 * PAGE_BYTES, 0)
    );
    guest.end();
}

#[test]
fn a_guest_that_reboots_meanwhile_stays_and_nobody_ends_it_at_the_switch_over() {
    let dir = tempfile::tempdir().unwrap();
    let Some(guest) = boot_probe(dir.path(), "fill_mib=1", 1, 64) else {
        return;
    };
    let since = guest.moment();
    guest.leave(since).unwrap();
    let refused = guest.ask("reset the guest", Notice::Reset);
    assert!(
        matches!(refused, Err(GuestError::Leaving(_))),
        "{refused:?}"
    );
    assert!(guest.reboot(|| {}).is_err());
    let waiting = thread::spawn({
        let guest = guest.clone();
        move || guest.settle()
    });
    assert!(guest.unhold(Hold::Migration).unwrap());
    assert!(!waiting.join().unwrap(), "it is here");
    guest.reboot(|| {}).unwrap();
    let left = guest.leave(since);
    assert!(matches!(left, Err(GuestError::Ending)), "{left:?}");
    assert!(guest.unhold(Hold::Migration).unwrap());
    wait_for(&guest, "that it runs again", Report::is_running);
}

/// The link is slower than the guest by far, and the goal strict: only holding it
/// back can help.
#[test]
fn a_guest_that_outruns_the_link_is_held_back_until_it_fits() {
    let dir = tempfile::tempdir().unwrap();
    let settings = "fill_mib=32 hot_mib=16 rate_mib_s=max sweep_mib_s=0";
    let Some(guest) = boot_probe(dir.path(), settings, 1, 64) else {
        return;
    };
    let moved = migrate(&guest, |wish| {
        wish.bandwidth_max = 64 << 20;
        wish.goal.blackout_max_us = 50_000;
    });
    let moved = moved.unwrap();
    guest.end();
    verify_all_pages_at_rest(&moved.guest);
    println!("{:?}", moved.summary);
}

#[test]
fn a_target_that_is_not_there_costs_the_guest_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(guest) = boot_probe(dir.path(), "fill_mib=1", 1, 64) else {
        return;
    };
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let outcome = guest.departures().depart(&guest, &wish(nobody.to_string()));
    assert!(matches!(outcome, Ok(Outcome::Stayed(_))), "{outcome:?}");
    assert_eq!(guest.state(), Some(State::Running));
    let turns = report(&guest).unwrap().vcpus[0].turns;
    wait_for(&guest, "that it goes on", |report| {
        report.vcpus[0].turns > turns
    });
}
