//! The commands that look.

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use serde::Serialize;
use storage_core::record::{HeartbeatRecord, LeaseRecord};

use super::{Cli, CliError, FOUND_WRONG, print_json};
use crate::capability::Capabilities;
use crate::cluster_file::ClusterFile;
use crate::datastore::Datastore;
use crate::fence;
use crate::heartbeat;
use crate::lease::LeaseFiles;

/// Says `answer` as JSON, or as the text for people.
pub(super) fn answer(
    cli: &Cli,
    answer: &impl Serialize,
    text: impl FnOnce() -> String,
) -> Result<ExitCode, CliError> {
    if cli.json {
        print_json(answer)?;
    } else {
        writeln!(io::stdout(), "{}", text())?;
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Status<'a> {
    cluster: &'a ClusterFile,
    leader: Option<LeaseRecord>,
    hosts: Vec<HostStatus>,
    /// Found by writing, which a datastore that is full or read-only refuses.
    file_system: Option<Capabilities>,
    file_system_error: Option<String>,
}

#[derive(Serialize)]
struct HostStatus {
    host: String,
    /// The heartbeat changed while it was watched.
    beats: bool,
    heartbeat: Option<HeartbeatRecord>,
    error: Option<String>,
}

pub(super) fn status(cli: &Cli, store: &Datastore, watch_ms: u64) -> Result<ExitCode, CliError> {
    let names = store.hosts()?;
    let read = |host: &String| {
        let path = store.heartbeat_path(host)?;
        heartbeat::read(&path)
    };
    let before: Vec<_> = names.iter().map(|host| read(host).ok()).collect();
    thread::sleep(Duration::from_millis(if names.is_empty() {
        0
    } else {
        watch_ms
    }));
    let hosts = names.iter().zip(before).map(|(host, before)| {
        let (heartbeat, error) = match read(host) {
            Ok(record) => (Some(record), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let beats = heartbeat.is_some() && heartbeat != before;
        HostStatus {
            host: host.clone(),
            beats,
            heartbeat,
            error,
        }
    });
    let (file_system, file_system_error) = match Capabilities::probe(store) {
        Ok(found) => (Some(found), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let status = Status {
        cluster: store.cluster(),
        leader: store.leader_lease().last()?,
        hosts: hosts.collect(),
        file_system,
        file_system_error,
    };
    answer(cli, &status, || status_text(store, &status))
}

fn status_text(store: &Datastore, status: &Status<'_>) -> String {
    let leader = status.leader.as_ref();
    let mut lines = vec![
        format!(
            "cluster      {} ({})",
            status.cluster.name,
            store.root().display()
        ),
        format!(
            "leader       {}",
            leader.map_or("nobody yet".into(), holder_text)
        ),
    ];
    lines.extend(status.file_system.iter().flat_map(can_do));
    let host = |host: &HostStatus| format!("host         {:<16} {}", host.host, host.state());
    lines.extend(status.hosts.iter().map(host));
    let advice = status.file_system.iter().flat_map(|found| &found.advice);
    lines.extend(advice.map(|advice| format!("advice       {advice}")));
    let wrong = status.file_system_error.iter();
    lines.extend(wrong.map(|error| format!("WRONG        {error}")));
    lines.join("\n")
}

fn can_do(found: &Capabilities) -> [String; 5] {
    let disk = match found.disk_ms {
        Some(disk_ms) => format!("after {disk_ms} ms"),
        None => "when the NFS server gives up on the dead host's lock".to_owned(),
    };
    let yes = |yes| if yes { "yes" } else { "no" };
    [
        format!("clones       {}", yes(found.reflink)),
        format!("OFD locks    {}", yes(found.ofd_locks)),
        format!("direct I/O   {}", yes(found.direct_io)),
        format!(
            "takeover     {} ms after the last heartbeat",
            found.takeover_ms
        ),
        format!("its disks    {disk}"),
    ]
}

impl HostStatus {
    fn state(&self) -> String {
        let record = match (&self.error, &self.heartbeat) {
            (Some(error), _) => return error.clone(),
            (None, None) => return "unknown".into(),
            (None, Some(record)) => record,
        };
        let beats = if self.beats { "beats" } else { "SILENT" };
        format!(
            "{beats} (boot {:.8}, heartbeat {}, term {})",
            record.incarnation, record.counter, record.term
        )
    }
}

#[derive(Serialize)]
struct GuestStatus {
    guest: String,
    revision: Option<u64>,
    lease: Option<LeaseRecord>,
    disks: Vec<String>,
    error: Option<String>,
}

pub(super) fn guests(cli: &Cli, store: &Datastore) -> Result<ExitCode, CliError> {
    let mut guests = Vec::new();
    for name in store.guests()? {
        let guest = store.guest(&name)?;
        let (spec, lease) = (guest.spec::<toml::Table>(), guest.lease().last());
        let errors = [spec.as_ref().err(), lease.as_ref().err()];
        let error = errors.into_iter().flatten().next().map(ToString::to_string);
        guests.push(GuestStatus {
            error,
            revision: spec.ok().map(|spec| spec.revision),
            lease: lease.ok().flatten(),
            disks: fence::disks(guest.path())?,
            guest: name,
        });
    }
    answer(cli, &guests, || {
        let lines = guests.iter().map(|guest| {
            let lease = guest
                .lease
                .as_ref()
                .map_or("free (never held)".into(), holder_text);
            let state = guest.error.clone().unwrap_or(lease);
            format!(
                "{:<20} {:<50} {}",
                guest.guest,
                state,
                guest.disks.join(" ")
            )
        });
        let text = lines.collect::<Vec<_>>().join("\n");
        if text.is_empty() {
            "no guests".into()
        } else {
            text
        }
    })
}

fn holder_text(record: &LeaseRecord) -> String {
    let epoch = record.epoch;
    record.holder.as_ref().map_or_else(
        || format!("free (epoch {epoch})"),
        |holder| format!("{holder}, epoch {epoch}"),
    )
}

pub(super) fn lease(cli: &Cli, files: &LeaseFiles) -> Result<ExitCode, CliError> {
    // The last one first, so that its damage is an error and not an omission.
    files.last()?;
    let history = files.history()?;
    answer(cli, &history, || {
        let lines = history.iter().map(|record| {
            let who = record
                .holder
                .as_ref()
                .map_or("nobody".into(), ToString::to_string);
            let grant = format!("{:?}", record.grant);
            format!(
                "epoch {:<6} {grant:<11} {who}: {}",
                record.epoch, record.note
            )
        });
        let text = lines.collect::<Vec<_>>().join("\n");
        if text.is_empty() {
            format!("{} was never held", files.subject())
        } else {
            text
        }
    })
}

#[derive(Serialize)]
struct Checked {
    wrong: Vec<String>,
    advice: Vec<String>,
    leftovers: Vec<String>,
}

pub(super) fn check(cli: &Cli, store: &Datastore) -> Result<ExitCode, CliError> {
    let mut wrong: Vec<String> = store.validate()?.iter().map(ToString::to_string).collect();
    let advice = match Capabilities::probe(store) {
        Ok(found) => found.advice,
        Err(error) => {
            wrong.push(error.to_string());
            Vec::new()
        }
    };
    let checked = Checked {
        wrong,
        advice,
        leftovers: store
            .leftovers()?
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
    };
    answer(cli, &checked, || {
        let titled = |title: &'static str, lines: &[String]| -> Vec<String> {
            lines
                .iter()
                .map(|line| format!("{title:<9} {line}"))
                .collect()
        };
        let mut lines = titled("WRONG", &checked.wrong);
        lines.extend(titled("advice", &checked.advice));
        lines.extend(titled("leftover", &checked.leftovers));
        if checked.wrong.is_empty() {
            lines.push("the datastore is sound".into());
        }
        lines.join("\n")
    })?;
    Ok(if checked.wrong.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FOUND_WRONG)
    })
}
