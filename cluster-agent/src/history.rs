//! What happened and why, kept in the cluster's state so that it outlives every host.
//!
//! Each host appends JSON lines to a log of its own, so there is one writer a log and no lock;
//! readers merge them by time.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use cluster_core::model::HostId;
use shared_storage::state::Kind;
use shared_storage::{StateStore, StoreError};

use crate::api::views::Event;

/// Longest detail that is recorded, in bytes; the rest is cut.
const DETAIL_BYTES_MAX: usize = 2000;

/// Records the events of one host.
#[derive(Debug)]
pub struct History {
    host: HostId,
    state: Arc<dyn StateStore>,
    next_number: Mutex<u64>,
}

impl History {
    /// Go on with the history of `host`.
    pub fn open(state: Arc<dyn StateStore>, host: HostId) -> Self {
        let last = of_host(&*state, &host)
            .last()
            .map_or(0, |event| event.number);
        Self {
            host,
            state,
            next_number: Mutex::new(last + 1),
        }
    }

    /// Record that `what` happened to `about`, and why.
    ///
    /// Blocks on the store: call it where that holds up nothing. Errors are the caller's to
    /// log; an event that cannot be recorded must not stop the act itself.
    pub fn record(&self, about: &str, what: &str, detail: &str) -> Result<Event, StoreError> {
        let mut number = self
            .next_number
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let cut = detail.floor_char_boundary(DETAIL_BYTES_MAX);
        let event = Event {
            number: *number,
            unix_ms: unix_ms(),
            host: self.host.clone(),
            about: about.to_owned(),
            what: what.to_owned(),
            detail: detail[..cut].to_owned(),
        };
        let line = serde_json::to_string(&event)
            .map_err(|error| StoreError::io("write down", about)(io::Error::other(error)))?;
        self.state.append(&self.host, &line)?;
        *number += 1;
        Ok(event)
    }
}

/// The newest `count` events of all hosts (about `about`, if that is named), the oldest of them
/// first.
pub fn read_all(
    state: &dyn StateStore,
    about: Option<&str>,
    count: usize,
) -> Result<Vec<Event>, StoreError> {
    let mut events = Vec::new();
    for host in state.list(Kind::Hosts)? {
        events.extend(of_host(state, &host));
    }
    events.retain(|event| about.is_none_or(|about| event.about == about));
    events.sort_by(|a, b| (a.unix_ms, &a.host, a.number).cmp(&(b.unix_ms, &b.host, b.number)));
    Ok(events.split_off(events.len().saturating_sub(count)))
}

/// Follows the histories of all hosts.
#[derive(Debug)]
pub struct Tail {
    state: Arc<dyn StateStore>,
    /// The last number seen of each host.
    seen: BTreeMap<HostId, u64>,
    /// The mark of each host's log when it was last read.
    marks: BTreeMap<HostId, u64>,
    /// What there was before counts as seen, but for so many.
    before: Option<usize>,
}

impl Tail {
    /// Go on after what was `seen`; or, if nothing is said of that, begin with the last
    /// `before` events and what comes from now on.
    pub fn new(
        state: Arc<dyn StateStore>,
        seen: Option<BTreeMap<HostId, u64>>,
        before: usize,
    ) -> Self {
        Self {
            state,
            before: seen.is_none().then_some(before),
            seen: seen.unwrap_or_default(),
            marks: BTreeMap::new(),
        }
    }

    /// What is new, each event with what has been seen once it is. Blocks on the store; a host
    /// whose log cannot be read is looked at again the next time.
    pub fn look(&mut self) -> Vec<(Event, BTreeMap<HostId, u64>)> {
        let mut new = Vec::new();
        for host in self.state.list(Kind::Hosts).unwrap_or_default() {
            let mark = self.state.log_mark(&host).unwrap_or(0);
            if self.marks.get(&host) == Some(&mark) {
                continue;
            }
            let last = self.seen.get(&host).copied().unwrap_or(0);
            let events = of_host(&*self.state, &host).into_iter();
            // A clock that was set back must not turn a host's own order round.
            let mut latest_ms = 0;
            new.extend(events.filter(|event| event.number > last).map(|event| {
                latest_ms = event.unix_ms.max(latest_ms);
                (latest_ms, event)
            }));
            self.marks.insert(host, mark);
        }
        new.sort_by(|(a_ms, a), (b_ms, b)| {
            (a_ms, &a.host, a.number).cmp(&(b_ms, &b.host, b.number))
        });
        let skipped = match self.before.take() {
            Some(before) => new.len().saturating_sub(before),
            None => 0,
        };
        let told = new.into_iter().enumerate().filter_map(|(at, (_, event))| {
            self.seen.insert(event.host.clone(), event.number);
            (at >= skipped).then(|| (event, self.seen.clone()))
        });
        told.collect()
    }
}

/// The events of one host, in order. Lines that a crash cut short are passed over, and so is a
/// host whose log cannot be read.
fn of_host(state: &dyn StateStore, host: &str) -> Vec<Event> {
    let log = state.log(host).unwrap_or_default();
    let parse = |line: &str| serde_json::from_str(line).ok();
    log.lines().filter_map(parse).collect()
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use shared_storage::state::{Key, Memory};

    use super::*;

    /// A store with two hosts, and how to open their histories.
    fn two_hosts() -> Arc<dyn StateStore> {
        let state: Arc<dyn StateStore> = Arc::new(Memory::default());
        for host in ["a", "b"] {
            state.put(&Key::Host(host.to_owned()), 0, "").unwrap();
        }
        state
    }

    fn open(state: &Arc<dyn StateStore>, host: &str) -> History {
        History::open(state.clone(), host.to_owned())
    }

    #[test]
    fn histories_of_hosts_are_merged_and_go_on_after_a_restart() {
        let state = two_hosts();
        let (a, b) = (open(&state, "a"), open(&state, "b"));
        a.record("web1", "started", "room for 4 GiB").unwrap();
        b.record("web2", "started", "room for 2 GiB").unwrap();
        drop(a);
        let a = open(&state, "a");
        assert_eq!(a.record("web1", "stopped", "asked to").unwrap().number, 2);
        assert_eq!(read_all(&*state, None, 10).unwrap().len(), 3);
        assert_eq!(read_all(&*state, None, 1).unwrap().len(), 1);
        assert_eq!(read_all(&*state, Some("web2"), 9).unwrap().len(), 1);
    }

    #[test]
    fn a_tail_tells_each_event_once_and_goes_on_where_another_ended() {
        let state = two_hosts();
        let (a, b) = (open(&state, "a"), open(&state, "b"));
        let told = |tail: &mut Tail| -> Vec<String> {
            tail.look()
                .into_iter()
                .map(|(event, _)| event.what)
                .collect()
        };
        a.record("web1", "first", "").unwrap();
        b.record("web1", "second", "").unwrap();
        let mut tail = Tail::new(state.clone(), None, 1);
        assert_eq!(told(&mut tail), ["second"]);
        assert!(told(&mut tail).is_empty());
        a.record("web1", "third", "").unwrap();
        b.record("web1", "fourth", "").unwrap();
        let new = tail.look();
        let seen = new[0].1.clone();
        assert_eq!(seen, BTreeMap::from([("a".into(), 2), ("b".into(), 1)]));
        let mut again = Tail::new(state.clone(), Some(seen), 9);
        assert_eq!(told(&mut again), ["fourth"]);
        assert!(told(&mut Tail::new(state, None, 0)).is_empty());
    }

    #[test]
    fn a_line_cut_short_by_a_crash_loses_only_itself_and_a_long_one_its_end() {
        let state = two_hosts();
        let history = open(&state, "a");
        history.record("web1", "started", "").unwrap();
        state.append("a", "{\"number\":2,\"uni").unwrap();
        let long = "é".repeat(3000);
        let event = history.record("web1", "stopped", &long).unwrap();
        assert_eq!(event.detail.len(), DETAIL_BYTES_MAX);
        assert_eq!(of_host(&*state, "a").len(), 2);
    }
}
