//! The words of `godwit create`, `edit` and `clone`, and what they become.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use clap::{Args, ValueEnum};
use cluster_core::dependencies;
use cluster_core::model::{Priority, Readiness};
use hyper::Method;

use super::run::{Agent, CliError, print, print_json};
use super::table::memory;
use crate::api::edit::GuestSettings;
use crate::api::views::{CloneGuest, CreateGuest, DiskFrom, EditGuest};
use crate::guest_file::CpuModel;

/// Longest wait for another guest that can be asked for, in seconds.
const DELAY_S_MAX: u64 = 3600;

/// A new guest.
#[derive(Debug, Args)]
pub struct CreateArguments {
    /// Its name.
    pub name: String,
    /// The image it is made from; `godwit images` lists them.
    #[arg(long)]
    pub image: String,
    /// Virtual processors.
    #[arg(long, default_value_t = 1)]
    pub cpus: u32,
    /// Memory: a number with M or G.
    #[arg(long, default_value = "512M", value_parser = parse_memory)]
    pub memory: u64,
    /// Copy the image's disk instead of building on it.
    #[arg(long)]
    pub copy: bool,
    /// What its processors can do: what all hosts have, so that it can move to any, or all that
    /// the host has on which it starts.
    #[arg(long, value_enum, default_value_t = CpuName::Cluster)]
    pub cpu: CpuName,
    /// Kernel command line instead of the image's.
    #[arg(long)]
    pub cmdline: Option<String>,
    /// Order of restart after a failure.
    #[arg(long, value_enum, default_value_t = PriorityName::Medium)]
    pub priority: PriorityName,
    /// Do not restart it when its host is lost.
    #[arg(long)]
    pub unprotected: bool,
    /// Processor time kept for it, in thousandths of a core: counted wherever guests are placed,
    /// moved and admitted, not enforced on a host that is busy all the same.
    #[arg(long, default_value_t = 0)]
    pub reserve_mcpu: u64,
    /// Start it only after this guest: `db` runs, `db:heartbeat` has said something on its
    /// network, `db:30s` has run for so long. May be said several times.
    #[arg(long, value_name = "GUEST[:WHEN]", value_parser = parse_dependency)]
    pub depends_on: Vec<Dependency>,
    /// Only make it; do not start it.
    #[arg(long)]
    pub no_start: bool,
}

/// What is to change of a guest; without any change it is shown.
#[derive(Debug, Args)]
pub struct EditArguments {
    /// The guest; the beginning of its name is enough.
    pub guest: String,
    /// Virtual processors, from its next start.
    #[arg(long)]
    cpus: Option<u32>,
    /// Memory, from its next start: a number with M or G.
    #[arg(long, value_parser = parse_memory)]
    memory: Option<u64>,
    /// What its processors can do, from its next start.
    #[arg(long, value_enum)]
    cpu: Option<CpuName>,
    /// Kernel command line, from its next start; an empty one means the image's.
    #[arg(long)]
    cmdline: Option<String>,
    /// Order of restart after a failure.
    #[arg(long, value_enum)]
    priority: Option<PriorityName>,
    /// Restart it when its host is lost.
    #[arg(long, conflicts_with = "unprotected")]
    protected: bool,
    /// Do not restart it when its host is lost.
    #[arg(long)]
    unprotected: bool,
    /// Processor time kept for it, in thousandths of a core: counted wherever guests are placed,
    /// moved and admitted, not enforced on a host that is busy all the same.
    #[arg(long)]
    reserve_mcpu: Option<u64>,
    /// Seconds from its power button to the cut whenever it is stopped; 0 cuts at once.
    #[arg(long)]
    grace: Option<u64>,
    /// Start it only after this guest: `db` runs, `db:heartbeat` has said something on its
    /// network, `db:30s` has run for so long. May be said several times.
    #[arg(long, value_name = "GUEST[:WHEN]", value_parser = parse_dependency)]
    depends_on: Vec<Dependency>,
    /// Do not wait for this guest any more.
    #[arg(long, value_name = "GUEST")]
    no_depends_on: Vec<String>,
    /// Only if it still is as it was at this revision.
    #[arg(long)]
    revision: Option<u64>,
}

/// A copy of a guest.
#[derive(Debug, Args)]
pub struct CloneArguments {
    /// The guest, which is off; the beginning of its name is enough.
    pub guest: String,
    /// The name of the clone.
    pub name: String,
}

/// What a guest waits for.
pub type Dependency = (String, Readiness);

/// The names of [`CpuModel`].
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum CpuName {
    /// What all hosts of the cluster have.
    Cluster,
    /// All that the host has on which it starts.
    Host,
}

impl From<CpuName> for CpuModel {
    fn from(name: CpuName) -> Self {
        match name {
            CpuName::Cluster => Self::Cluster,
            CpuName::Host => Self::Host,
        }
    }
}

/// The names of [`Priority`].
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PriorityName {
    /// Before all others.
    Highest,
    /// Early.
    High,
    /// The default.
    Medium,
    /// Late.
    Low,
    /// After all others.
    Lowest,
}

impl From<PriorityName> for Priority {
    fn from(name: PriorityName) -> Self {
        match name {
            PriorityName::Highest => Self::Highest,
            PriorityName::High => Self::High,
            PriorityName::Medium => Self::Medium,
            PriorityName::Low => Self::Low,
            PriorityName::Lowest => Self::Lowest,
        }
    }
}

/// `512M`, `4G`, or plain MiB.
fn parse_memory(text: &str) -> Result<u64, String> {
    let (digits, mib_each) = match text.as_bytes().last() {
        Some(b'M' | b'm') => (&text[..text.len() - 1], 1),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 1024),
        _ => (text, 1),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(mib_each))
        .filter(|mib| *mib > 0)
        .ok_or_else(|| "write it as 512M or 4G".to_owned())
}

/// `db`, `db:running`, `db:heartbeat`, `db:30s`.
fn parse_dependency(text: &str) -> Result<Dependency, String> {
    let (guest, when) = text.split_once(':').unwrap_or((text, "running"));
    let seconds = when.strip_suffix('s').and_then(|n| n.parse::<u64>().ok());
    let until = match (when, seconds) {
        ("running", _) => Readiness::Running,
        ("heartbeat", _) => Readiness::Heartbeat,
        (_, Some(seconds @ 0..=DELAY_S_MAX)) => {
            Readiness::DelayMs(Duration::from_secs(seconds).as_millis() as u64)
        }
        _ => {
            return Err(format!(
                "write it as db, db:running, db:heartbeat or db:30s (up to {DELAY_S_MAX}s)"
            ));
        }
    };
    if guest.is_empty() {
        return Err("name the guest before the colon, as in db:heartbeat".to_owned());
    }
    Ok((guest.to_owned(), until))
}

/// Make a guest.
pub async fn create(agent: &Agent, arguments: CreateArguments) -> Result<(), CliError> {
    let wish = CreateGuest {
        name: arguments.name,
        image: arguments.image,
        cpus: arguments.cpus,
        memory_mib: arguments.memory,
        disk_from: if arguments.copy {
            DiskFrom::Copy
        } else {
            DiskFrom::Overlay
        },
        cpu: arguments.cpu.into(),
        cmdline: arguments.cmdline,
        priority: arguments.priority.into(),
        protected: !arguments.unprotected,
        reserve_mcpu: arguments.reserve_mcpu,
        after: arguments.depends_on.into_iter().collect(),
        start: !arguments.no_start,
    };
    agent.act(Method::POST, "/v1/guests", &wish).await
}

/// Make a copy of a guest.
pub async fn clone(agent: &Agent, arguments: CloneArguments) -> Result<(), CliError> {
    let wish = CloneGuest {
        name: arguments.name,
    };
    agent.guest_act(&arguments.guest, "clone", &wish).await
}

/// Change a guest, or show what it is.
pub async fn edit(agent: &Agent, arguments: EditArguments) -> Result<(), CliError> {
    let guest = agent.guest(&arguments.guest).await?;
    let path = format!("/v1/guests/{guest}");
    let is: GuestSettings = agent.ask(&path).await?;
    let wish = wish(arguments, &is)?;
    if is_empty(&wish) {
        if agent.json {
            return print_json(&is);
        }
        return print(&words(&guest, &is));
    }
    agent.act(Method::PATCH, &path, &wish).await
}

fn is_empty(wish: &EditGuest) -> bool {
    let nothing = EditGuest {
        revision: wish.revision,
        ..EditGuest::default()
    };
    *wish == nothing
}

/// The change, built on what was read.
fn wish(arguments: EditArguments, is: &GuestSettings) -> Result<EditGuest, CliError> {
    let mut after: BTreeMap<_, _> = is.settings.after.clone();
    for gone in &arguments.no_depends_on {
        if after.remove(gone).is_none() {
            let why = format!("{} does not wait for {gone}", arguments.guest);
            return Err(CliError::Name(why));
        }
    }
    after.extend(arguments.depends_on);
    let protected = match (arguments.protected, arguments.unprotected) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    Ok(EditGuest {
        revision: Some(arguments.revision.unwrap_or(is.revision)),
        cpus: arguments.cpus,
        memory_mib: arguments.memory,
        cpu: arguments.cpu.map(CpuModel::from),
        cmdline: arguments.cmdline,
        priority: arguments.priority.map(Priority::from),
        protected,
        reserve_mcpu: arguments.reserve_mcpu,
        grace_s: arguments.grace,
        after: Some(after).filter(|after| *after != is.settings.after),
    })
}

fn words(guest: &str, is: &GuestSettings) -> String {
    let file = &is.settings;
    let after: Vec<_> = file
        .after
        .iter()
        .map(|(before, until)| dependencies::words(before, *until))
        .collect();
    let macs: Vec<_> = file.macs.iter().map(ToString::to_string).collect();
    let or = |text: String, nothing: &str| {
        if text.is_empty() {
            nothing.to_owned()
        } else {
            text
        }
    };
    let mut out = String::new();
    for (name, value) in [
        ("guest", guest.to_owned()),
        ("revision", is.revision.to_string()),
        ("image", file.image.clone()),
        ("cpus", file.cpus.to_string()),
        ("memory", memory(file.memory_mib)),
        ("cpu", format!("{:?}", file.cpu).to_lowercase()),
        (
            "cmdline",
            or(file.cmdline.clone().unwrap_or_default(), "the image's"),
        ),
        ("priority", format!("{:?}", file.priority).to_lowercase()),
        (
            "protected",
            if file.protected { "yes" } else { "no" }.to_owned(),
        ),
        ("reserve-mcpu", file.reserve_mcpu.to_string()),
        ("grace", format!("{} s", file.grace_s)),
        ("depends-on", or(after.join(", "), "nobody")),
        ("mac", or(macs.join(", "), "none")),
    ] {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:13} {value}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_mib() {
        assert_eq!(parse_memory("512M"), Ok(512));
        assert_eq!(parse_memory("4G"), Ok(4096));
        assert_eq!(parse_memory("64"), Ok(64));
        for bad in ["", "G", "0", "-1M", "99999999999999999G", "1T"] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn dependencies_are_read() {
        let read = parse_dependency;
        let db = |until| Ok(("db".to_owned(), until));
        assert_eq!(read("db"), db(Readiness::Running));
        assert_eq!(read("db:running"), db(Readiness::Running));
        assert_eq!(read("db:heartbeat"), db(Readiness::Heartbeat));
        assert_eq!(read("db:30s"), db(Readiness::DelayMs(30_000)));
        for bad in [":30s", "db:", "db:30", "db:-1s", "db:9999s", "db:soon", ""] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
