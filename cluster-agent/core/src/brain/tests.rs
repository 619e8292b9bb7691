//! What one brain does, event by event. Several of them together are in the simulator.

mod admitting;
mod early;
mod leading;
mod leaving;
mod letting_go;
mod obeying;

use alloc::boxed::Box;

use storage_core::record::HeartbeatRecord;

use super::*;
use crate::messages::{GuestState, Holder, LocalGuest, Report, StartOrder};
use crate::model::{Guest, Resources};
use crate::settings::HostEntry;

const MS: u64 = 1000;

fn inventory(hosts: &[&str], guests: &[&str]) -> Event {
    let capacity = Resources::new(8000, 16 * 1024);
    let entry = HostEntry {
        capacity,
        ..HostEntry::default()
    };
    let guest = Guest::sized(Resources::new(1000, 1024));
    Event::Inventory(Box::new(Inventory {
        hosts: hosts.iter().map(|h| ((*h).into(), entry.clone())).collect(),
        guests: guests
            .iter()
            .map(|g| ((*g).into(), guest.clone()))
            .collect(),
        ..Inventory::default()
    }))
}

fn held(epoch: u64, host: &str, boot: u8) -> LeaseSeen {
    LeaseSeen {
        epoch,
        holder: Some(Holder {
            host: host.into(),
            incarnation: Incarnation([boot; 16]),
            term: 1,
        }),
    }
}

fn leader(brain: &mut Brain, now_us: u64, hosts: &[&str], guests: &[&str]) {
    brain.step(now_us, inventory(hosts, guests));
    brain.step(now_us, Event::Hold(Hold::new(1 << 40, 1)));
    brain.step(now_us, Event::LeaderLease(LeaseSeen::default()));
    let actions = brain.step(now_us, Event::Tick);
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::ContendForLeader { from_epoch: 0, .. }))
    );
    let actions = brain.step(now_us, Event::LeaderLease(held(1, "a", 7)));
    let all: Vec<String> = guests.iter().map(|g| (*g).to_string()).collect();
    assert!(
        actions.contains(&Action::ReadLeases { guests: all }),
        "{actions:?}"
    );
}

/// Host b is heard and its record moves; so for so long.
fn b_is_well(brain: &mut Brain, from_ms: u64, to_ms: u64, guests: &[&str]) -> Vec<Action> {
    let incarnation = Incarnation([9; 16]);
    let mut actions = Vec::new();
    for now_ms in (from_ms..to_ms).step_by(250) {
        let record = HeartbeatRecord {
            host: "b".into(),
            incarnation,
            counter: now_ms,
            sent_us: 0,
            term: 1,
            flags: HostNote { hears: 1, of: 1 }.to_flags(),
            writer_pid: 1,
        };
        let sighted = Event::Sighted {
            host: "b".into(),
            record: Some(record),
            silent_us: 0,
        };
        let local = LocalGuest {
            epoch: 4,
            state: GuestState::Running { beating: true },
            running_ms: 0,
        };
        let report = Report {
            incarnation,
            guests: guests
                .iter()
                .map(|g| ((*g).into(), local.clone()))
                .collect(),
            ..Report::default()
        };
        let received = Event::Received {
            from: "b".into(),
            message: Message::Report(report),
        };
        for event in [sighted, received, Event::Tick] {
            actions.extend(brain.step(now_ms * MS, event));
        }
    }
    actions
}
