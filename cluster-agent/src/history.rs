//! What happened and why, kept on the datastore so that it outlives every host.
//!
//! Each host appends JSON lines to a file of its own (`hosts/<host>/events.jsonl`), so there
//! is one writer a file and no lock; readers merge them by time.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use cluster_core::model::HostId;
use shared_storage::undelegated;

use crate::api::views::Event;

const FILE: &str = "events.jsonl";
const OLDER_FILE: &str = "events.older.jsonl";
/// A file that has grown to this many bytes becomes the older one; the older one goes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Longest detail that is recorded, in bytes; the rest is cut.
const DETAIL_BYTES_MAX: usize = 2000;

/// Records the events of one host.
#[derive(Debug)]
pub struct History {
    host: HostId,
    dir: PathBuf,
    next_number: Mutex<u64>,
}

impl History {
    /// Go on with the history of `host` in its directory on the datastore.
    pub fn open(host_dir: &Path, host: HostId) -> Self {
        let last = read_host(host_dir).last().map_or(0, |event| event.number);
        Self {
            host,
            dir: host_dir.to_owned(),
            next_number: Mutex::new(last + 1),
        }
    }

    /// Record that `what` happened to `about`, and why.
    ///
    /// Blocks on the datastore: call it where that holds up nothing. Errors are the
    /// caller's to log; an event that cannot be recorded must not stop the act itself.
    pub fn record(&self, about: &str, what: &str, detail: &str) -> io::Result<Event> {
        let mut number = self
            .next_number
            .lock()
            .map_err(|_| io::Error::other("poisoned"))?;
        let cut = detail.floor_char_boundary(DETAIL_BYTES_MAX);
        let event = Event {
            number: *number,
            unix_ms: unix_ms(),
            host: self.host.clone(),
            about: about.to_owned(),
            what: what.to_owned(),
            detail: detail[..cut].to_owned(),
        };
        let mut line = serde_json::to_vec(&event).map_err(io::Error::other)?;
        line.push(b'\n');
        self.make_room()?;
        let path = self.dir.join(FILE);
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        file.write_all(&line)?;
        *number += 1;
        Ok(event)
    }

    fn make_room(&self) -> io::Result<()> {
        let path = self.dir.join(FILE);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() >= FILE_BYTES_MAX => {
                fs::rename(path, self.dir.join(OLDER_FILE))
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The newest `count` events of all hosts under `hosts_dir` (about `about`, if that is named),
/// the oldest of them first.
pub fn read_all(hosts_dir: &Path, about: Option<&str>, count: usize) -> io::Result<Vec<Event>> {
    let mut events = Vec::new();
    for host in fs::read_dir(hosts_dir)? {
        events.extend(read_host(&host?.path()));
    }
    events.retain(|event| about.is_none_or(|about| event.about == about));
    events.sort_by(|a, b| (a.unix_ms, &a.host, a.number).cmp(&(b.unix_ms, &b.host, b.number)));
    Ok(events.split_off(events.len().saturating_sub(count)))
}

/// Follows the histories of all hosts.
#[derive(Debug)]
pub struct Tail {
    hosts_dir: PathBuf,
    /// The last number seen of each host.
    seen: BTreeMap<HostId, u64>,
    /// How long each host's file was when it was last read.
    lengths: BTreeMap<HostId, u64>,
    /// What there was before counts as seen, but for so many.
    before: Option<usize>,
}

impl Tail {
    /// Go on after what was `seen`; or, if nothing is said of that, begin with the last
    /// `before` events and what comes from now on.
    pub fn new(hosts_dir: PathBuf, seen: Option<BTreeMap<HostId, u64>>, before: usize) -> Self {
        Self {
            hosts_dir,
            before: seen.is_none().then_some(before),
            seen: seen.unwrap_or_default(),
            lengths: BTreeMap::new(),
        }
    }

    /// What is new, each event with what has been seen once it is. Blocks on the datastore;
    /// a host that cannot be read is looked at again the next time.
    pub fn look(&mut self) -> Vec<(Event, BTreeMap<HostId, u64>)> {
        let mut new = Vec::new();
        for host in fs::read_dir(&self.hosts_dir)
            .into_iter()
            .flatten()
            .flatten()
        {
            let Ok(name) = host.file_name().into_string() else {
                continue;
            };
            // Opened first: the length that an NFS client remembers may be a minute old.
            let file = undelegated::open(&host.path().join(FILE));
            let length = file
                .and_then(|file| file.metadata())
                .map_or(0, |file| file.len());
            if self.lengths.get(&name) == Some(&length) {
                continue;
            }
            let last = self.seen.get(&name).copied().unwrap_or(0);
            let events = read_host(&host.path()).into_iter();
            // A clock that was set back must not turn a host's own order round.
            let mut latest_ms = 0;
            new.extend(events.filter(|event| event.number > last).map(|event| {
                latest_ms = event.unix_ms.max(latest_ms);
                (latest_ms, event)
            }));
            self.lengths.insert(name, length);
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

/// The events of one host, in order. Lines that a crash cut short are passed over, and a
/// host that has recorded nothing has no file.
fn read_host(host_dir: &Path) -> Vec<Event> {
    [OLDER_FILE, FILE]
        .iter()
        .filter_map(|name| undelegated::read_to_string(&host_dir.join(name)).ok())
        .flat_map(|text| {
            let parse = |line: &str| serde_json::from_str(line).ok();
            text.lines().filter_map(parse).collect::<Vec<Event>>()
        })
        .collect()
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histories_of_hosts_are_merged_and_go_on_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        for host in ["a", "b"] {
            fs::create_dir(dir.path().join(host)).unwrap();
        }
        let a = History::open(&dir.path().join("a"), "a".into());
        let b = History::open(&dir.path().join("b"), "b".into());
        a.record("web1", "started", "room for 4 GiB").unwrap();
        b.record("web2", "started", "room for 2 GiB").unwrap();
        drop(a);
        let a = History::open(&dir.path().join("a"), "a".into());
        assert_eq!(a.record("web1", "stopped", "asked to").unwrap().number, 2);
        assert_eq!(read_all(dir.path(), None, 10).unwrap().len(), 3);
        assert_eq!(read_all(dir.path(), None, 1).unwrap().len(), 1);
        assert_eq!(read_all(dir.path(), Some("web2"), 9).unwrap().len(), 1);
    }

    #[test]
    fn a_tail_tells_each_event_once_and_goes_on_where_another_ended() {
        let dir = tempfile::tempdir().unwrap();
        let open = |host: &str| {
            let own = dir.path().join(host);
            fs::create_dir_all(&own).unwrap();
            History::open(&own, host.into())
        };
        let (a, b) = (open("a"), open("b"));
        let told = |tail: &mut Tail| -> Vec<String> {
            tail.look()
                .into_iter()
                .map(|(event, _)| event.what)
                .collect()
        };
        a.record("web1", "first", "").unwrap();
        b.record("web1", "second", "").unwrap();
        let mut tail = Tail::new(dir.path().to_owned(), None, 1);
        assert_eq!(told(&mut tail), ["second"]);
        assert!(told(&mut tail).is_empty());
        a.record("web1", "third", "").unwrap();
        b.record("web1", "fourth", "").unwrap();
        let new = tail.look();
        let seen = new[0].1.clone();
        assert_eq!(seen, BTreeMap::from([("a".into(), 2), ("b".into(), 1)]));
        let mut again = Tail::new(dir.path().to_owned(), Some(seen), 9);
        assert_eq!(told(&mut again), ["fourth"]);
        assert!(told(&mut Tail::new(dir.path().to_owned(), None, 0)).is_empty());
    }

    #[test]
    fn a_line_cut_short_by_a_crash_loses_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::open(dir.path(), "a".into());
        history.record("web1", "started", "").unwrap();
        let mut file = OpenOptions::new()
            .append(true)
            .open(dir.path().join(FILE))
            .unwrap();
        file.write_all(b"{\"number\":2,\"uni\n").unwrap();
        history
            .record("web1", "stopped", &"é".repeat(3000))
            .unwrap();
        assert_eq!(read_host(dir.path()).len(), 2);
    }

    #[test]
    fn a_full_file_becomes_the_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::open(dir.path(), "a".into());
        history.record("web1", "started", "").unwrap();
        let filler = vec![b'\n'; FILE_BYTES_MAX as usize];
        fs::write(dir.path().join(FILE), filler).unwrap();
        history.record("web1", "stopped", "").unwrap();
        assert!(dir.path().join(OLDER_FILE).exists());
        assert_eq!(read_host(dir.path()).len(), 1);
    }
}
