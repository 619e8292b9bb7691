//! The `lab` command: a lab for people. docs/lab.md has a tour.

mod console;
mod forward;

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use lab::artefacts::{build_directory, catalogue};
use lab::supervisor::{Fault, Request, ask, is_up, serve};
use lab::{Cable, Direction, FileSystem, Lab, LabError, Settings};

/// Emulated hosts with real kernels, storage and cables.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Which lab, if there are several.
    #[arg(long, global = true, default_value = "lab")]
    name: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a lab that stays until `lab down`.
    Up(Up),
    /// End the lab and everything in it.
    Down,
    /// Show the hosts, their cables and what has befallen them.
    Status,
    /// Run a command in a host; a single word is a shell line.
    Exec {
        host: String,
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
    /// Take a host's serial console; Ctrl-] leaves it.
    Console { host: String },
    /// Copy a file into a host.
    Push {
        host: String,
        from: PathBuf,
        to: String,
    },
    /// Write a file of a host to standard output.
    Pull { host: String, path: String },
    /// Carry TCP connections from a local port to an address that a host reaches.
    Forward {
        host: String,
        /// ADDRESS:PORT inside the private network.
        to: SocketAddr,
        /// Where to listen here.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
    /// Lose a host's frames; the carrier stays up.
    Cut(Cut),
    /// End a cut.
    Heal(Cut),
    /// Stop a host; its clock jumps when thawed.
    Freeze { host: String },
    /// End a freeze.
    Thaw { host: String },
    /// Stop a host together with its clock.
    StopClock { host: String },
    /// End a stop of the clock.
    StartClock { host: String },
    /// Cut a host's power.
    PowerOff { host: String },
    /// Power a host on and mount the datastore.
    PowerOn { host: String },
    /// Cut the storage host's power, start it again and serve.
    RestartStorage,
    /// Undo every fault.
    Restore,
    /// Build our programs again and put them into the running hosts.
    Refresh,
    /// Copy the logs inside the hosts to build/lab/NAME/.
    Logs,
    /// What `up` leaves in the background.
    #[command(hide = true)]
    Supervise(Up),
}

#[derive(Clone, Debug, clap::Args)]
struct Up {
    /// Hosts besides the storage host; named a, b, c, ...
    #[arg(long, default_value_t = 3)]
    hosts: usize,
    /// RAM of each.
    #[arg(long, default_value_t = 640)]
    memory_mib: u32,
    /// A directory whose content the datastore has from the start.
    #[arg(long)]
    datastore: Option<PathBuf>,
    /// Give the datastore the Linux guests as its catalogue of images.
    #[arg(long, conflicts_with = "datastore")]
    catalogue: bool,
    /// Keep the datastore on ext4 instead of XFS: no reflinks, files of any size from the start.
    #[arg(long)]
    ext4: bool,
    /// A file that lies in /opt/godwit of every host; may be repeated.
    #[arg(long)]
    file: Vec<PathBuf>,
    /// End by itself when nobody has asked anything for so long.
    #[arg(long, default_value_t = 4)]
    idle_hours: u64,
}

#[derive(Debug, clap::Args)]
struct Cut {
    host: String,
    /// Only this cable.
    #[arg(long)]
    cable: Option<CableName>,
    /// Only this way.
    #[arg(long)]
    direction: Option<DirectionName>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CableName {
    Management,
    Storage,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DirectionName {
    FromHost,
    ToHost,
}

impl Cut {
    fn request(self, cut: bool) -> Request {
        Request::Cut {
            host: self.host,
            cable: self.cable.map(|cable| match cable {
                CableName::Management => Cable::Management,
                CableName::Storage => Cable::Storage,
            }),
            direction: match self.direction {
                Some(DirectionName::FromHost) => Direction::FromHost,
                Some(DirectionName::ToHost) => Direction::ToHost,
                None => Direction::Both,
            },
            cut,
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("lab: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(Arguments { name, verb }: Arguments) -> lab::Result<i32> {
    let fault = |host, fault| Request::Fault { host, fault };
    let request = match verb {
        Verb::Up(up) => return start(&name, &up),
        Verb::Supervise(up) => {
            let idle = Duration::from_hours(up.idle_hours);
            let lab = Lab::start(&settings(&name, &up)?)?;
            return serve(lab, &name, idle).map(|()| 0);
        }
        Verb::Exec { host, command } => {
            let command = match command.as_slice() {
                [line] => vec!["sh".into(), "-lc".into(), line.clone()],
                _ => command,
            };
            let request = Request::Exec { host, command };
            return ask(
                &name,
                &request,
                Some(Box::new(io::stdin())),
                &mut io::stdout(),
                &mut io::stderr(),
            );
        }
        Verb::Console { host } => return console::take(&name, &host),
        Verb::Forward { host, to, listen } => return forward::serve(&name, &host, to, listen),
        Verb::Push { host, from, to } => {
            let from = from
                .canonicalize()
                .map_err(|error| format!("cannot find {}: {error}", from.display()))?;
            Request::Push { host, from, to }
        }
        Verb::Pull { host, path } => Request::Pull { host, path },
        Verb::Cut(cut) => cut.request(true),
        Verb::Heal(cut) => cut.request(false),
        Verb::Freeze { host } => fault(host, Fault::Freeze),
        Verb::Thaw { host } => fault(host, Fault::Thaw),
        Verb::StopClock { host } => fault(host, Fault::StopClock),
        Verb::StartClock { host } => fault(host, Fault::StartClock),
        Verb::PowerOff { host } => fault(host, Fault::PowerOff),
        Verb::PowerOn { host } => fault(host, Fault::PowerOn),
        Verb::RestartStorage => Request::RestartStorage,
        Verb::Restore => Request::Restore,
        Verb::Refresh => Request::Refresh,
        Verb::Logs => Request::Logs,
        Verb::Status => Request::Status,
        Verb::Down => Request::Down,
    };
    ask(&name, &request, None, &mut io::stdout(), &mut io::stderr())
}

fn settings(name: &str, up: &Up) -> lab::Result<Settings> {
    let catalogue = if up.catalogue {
        Some(catalogue(&["busybox", "debian"])?)
    } else {
        None
    };
    Ok(Settings {
        hosts: up.hosts,
        memory_mib: up.memory_mib,
        name: name.into(),
        datastore: catalogue.or_else(|| up.datastore.clone()),
        file_system: if up.ext4 {
            FileSystem::Ext4
        } else {
            FileSystem::Xfs
        },
        files: up.file.clone(),
    })
}

/// Starts the supervisor in the background and waits until the lab is up.
fn start(name: &str, up: &Up) -> lab::Result<i32> {
    if is_up(name) {
        return Err(LabError::Other(format!(
            "lab {name} is up already; `lab down` ends it"
        )));
    }
    let directory = build_directory().join("lab");
    let log = directory.join(format!("{name}.log"));
    let file =
        |error: io::Error| LabError::Other(format!("cannot write {}: {error}", log.display()));
    std::fs::create_dir_all(&directory).map_err(file)?;
    let said = File::create(&log).map_err(file)?;
    let mut supervisor = Command::new("setsid");
    supervisor
        .arg(std::env::current_exe().map_err(file)?)
        .args(["--name", name, "supervise"]);
    supervisor.args([
        "--hosts",
        &up.hosts.to_string(),
        "--memory-mib",
        &up.memory_mib.to_string(),
    ]);
    supervisor.args(["--idle-hours", &up.idle_hours.to_string()]);
    if let Some(path) = &up.datastore {
        supervisor.arg("--datastore").arg(path);
    }
    if up.catalogue {
        supervisor.arg("--catalogue");
    }
    if up.ext4 {
        supervisor.arg("--ext4");
    }
    for path in &up.file {
        supervisor.arg("--file").arg(path);
    }
    supervisor
        .stdin(Stdio::null())
        .stdout(said.try_clone().map_err(file)?)
        .stderr(said);
    leave_descriptors_behind(&mut supervisor);
    let mut supervisor = supervisor.spawn().map_err(file)?;
    let limit = Duration::from_mins(15);
    lab::eventually_within(limit, "the lab coming up", || {
        if is_up(name) {
            return Some(Ok(()));
        }
        let ended = !matches!(supervisor.try_wait(), Ok(None));
        ended.then(|| {
            Err(LabError::Other(
                std::fs::read_to_string(&log)
                    .unwrap_or_default()
                    .trim()
                    .to_owned(),
            ))
        })
    })??;
    ask(
        name,
        &Request::Status,
        None,
        &mut io::stdout(),
        &mut io::stderr(),
    )
}

/// The supervisor outlives whoever starts it: it must not keep their locks and pipes open.
fn leave_descriptors_behind(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and makes one system call, which touches
    // no memory.
    unsafe {
        command.pre_exec(|| {
            match libc::close_range(
                3,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC.cast_signed(),
            ) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
}
