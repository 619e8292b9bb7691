//! The process that holds a lab started by `lab up`, and the conversation with it.
//!
//! One connection per act: a line of JSON asks ([`Request`]), frames of the agent's kind answer:
//! output, error text, and the end with an exit code. A running command's input goes the same way
//! back, so that `lab exec` feels like ssh.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lab_agent::Ended;
use lab_agent::frame::{Frame, Kind, PAYLOAD_LIMIT_BYTES};
use serde::{Deserialize, Serialize};

use crate::agent::{Event, Running};
use crate::artefacts::build_directory;
use crate::error::During;
use crate::host::{Cable, Direction, Host};
use crate::{Lab, LabError, Result};

/// Longest request line.
const REQUEST_LIMIT_BYTES: u64 = 1 << 20;
/// How long a command may run for a connected person.
const COMMAND_LIMIT: Duration = Duration::from_hours(24);

/// What a person may ask of a running lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// A table of the hosts.
    Status,
    /// Run a command in a host.
    Exec {
        /// Which host.
        host: String,
        /// Program and arguments.
        command: Vec<String>,
    },
    /// Copy a file of this machine into a host.
    Push {
        /// Which host.
        host: String,
        /// Absolute path here.
        from: PathBuf,
        /// Path there.
        to: String,
    },
    /// Write a file of a host to standard output.
    Pull {
        /// Which host.
        host: String,
        /// Path there.
        path: String,
    },
    /// Cut a cable, or heal it.
    Cut {
        /// Which host.
        host: String,
        /// Which cable; both if none is named.
        cable: Option<Cable>,
        /// Which way.
        direction: Direction,
        /// Whether to cut; otherwise heal.
        cut: bool,
    },
    /// Something that befalls one host.
    Fault {
        /// Which host.
        host: String,
        /// What.
        fault: Fault,
    },
    /// Cut the power of the storage host, start it again and serve.
    RestartStorage,
    /// Undo every fault.
    Restore,
    /// Build our programs again and put them into every host.
    Refresh,
    /// Copy the logs inside the hosts to `build/lab/NAME/`.
    Logs,
    /// Where the serial console's socket of a host is.
    Console {
        /// Which host.
        host: String,
    },
    /// End everything.
    Down,
}

/// What can befall a host.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// [`Host::freeze`]
    Freeze,
    /// [`Host::thaw`]
    Thaw,
    /// [`Host::stop_clock`]
    StopClock,
    /// [`Host::start_clock`]
    StartClock,
    /// [`Host::power_off`]
    PowerOff,
    /// [`Host::power_on`], then the datastore is mounted or served.
    PowerOn,
}

/// A directory kept open, so that sockets in it are reached by a path short enough for the
/// kernel (108 bytes) wherever the workspace lies.
struct ShortPath(File, String);

impl ShortPath {
    fn to_socket(name: &str) -> Result<Self> {
        let directory = build_directory().join("lab");
        std::fs::create_dir_all(&directory).during("create", &directory)?;
        Ok(Self(
            File::open(&directory).during("open", &directory)?,
            format!("{name}.socket"),
        ))
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{}", self.0.as_raw_fd(), self.1))
    }
}

/// Serves a lab until it is told to end, or nobody has asked anything for `idle_limit`.
pub fn serve(lab: Lab, name: &str, idle_limit: Duration) -> Result<()> {
    let socket = ShortPath::to_socket(name)?;
    let path = socket.path();
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).during("listen on", &path)?;
    let lab = Arc::new(lab);
    let (asked, news) = mpsc::sync_channel::<bool>(16);
    let serving = lab.clone();
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let (lab, asked) = (serving.clone(), asked.clone());
            thread::spawn(move || {
                let down = answer(&lab, &connection);
                let _ = asked.send(down);
            });
        }
    });
    // A message per ended act; `true` is the last one.
    while matches!(news.recv_timeout(idle_limit), Ok(false)) {}
    let _ = std::fs::remove_file(&path);
    // Other threads still hold the lab: end it here, whatever they do.
    lab.end()
}

/// Answers one connection; says whether everything shall end.
fn answer(lab: &Lab, connection: &UnixStream) -> bool {
    let mut line = String::new();
    let mut reader = BufReader::new(connection);
    if (&mut reader)
        .take(REQUEST_LIMIT_BYTES)
        .read_line(&mut line)
        .is_err()
    {
        return false;
    }
    let reply = |kind, payload: &[u8]| {
        payload
            .chunks(PAYLOAD_LIMIT_BYTES)
            .try_for_each(|chunk| Frame::new(kind, 0, chunk).write(&mut &*connection))
    };
    let request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => {
            let _ = reply(Kind::Error, format!("not a request: {error}\n").as_bytes());
            return false;
        }
    };
    let down = matches!(request, Request::Down);
    let ended = match act(lab, request) {
        Ok(Answer::Text(text)) => {
            let _ = reply(Kind::Output, &text);
            Ended::Code(0)
        }
        Ok(Answer::Command(running)) => relay(&running, reader, connection),
        Err(error) => {
            let _ = reply(Kind::Error, format!("lab: {error}\n").as_bytes());
            Ended::Code(1)
        }
    };
    let _ = reply(Kind::Exit, &serde_json::to_vec(&ended).unwrap_or_default());
    down
}

enum Answer {
    Text(Vec<u8>),
    Command(Running),
}

fn act(lab: &Lab, request: Request) -> Result<Answer> {
    let mut text = Vec::new();
    match request {
        Request::Status => text = status(lab).into_bytes(),
        Request::Exec { host, command } => {
            return lab
                .host(&host)?
                .start_command(&command)
                .map(Answer::Command);
        }
        Request::Push { host, from, to } => lab.host(&host)?.push_file(&from, &to)?,
        Request::Pull { host, path } => text = lab.host(&host)?.pull(&path)?,
        Request::Cut {
            host,
            cable,
            direction,
            cut,
        } => {
            let host = lab.host(&host)?;
            let both = [Cable::Management, Cable::Storage];
            for cable in both
                .into_iter()
                .filter(|&one| cable.is_none_or(|cable| cable == one))
            {
                if cut {
                    host.cut(cable, direction);
                } else {
                    host.heal(cable, direction);
                }
            }
        }
        Request::Fault { host, fault } => befall(lab, lab.host(&host)?, fault)?,
        Request::RestartStorage => lab.storage().restart()?,
        Request::Restore => lab.restore()?,
        Request::Refresh => lab.refresh_programs()?,
        Request::Logs => {
            lab.collect_logs();
            text = format!("{}\n", lab.directory().display()).into_bytes();
        }
        Request::Console { host } => {
            text = lab
                .host(&host)?
                .console_socket()
                .to_string_lossy()
                .into_owned()
                .into_bytes();
        }
        Request::Down => {}
    }
    Ok(Answer::Text(text))
}

fn befall(lab: &Lab, host: &Host, fault: Fault) -> Result<()> {
    match fault {
        Fault::Freeze => host.freeze(),
        Fault::Thaw => host.thaw(),
        Fault::StopClock => host.stop_clock(),
        Fault::StartClock => host.start_clock(),
        Fault::PowerOff => host.power_off(),
        Fault::PowerOn => {
            host.power_on()?;
            if host.name == lab.storage().host.name {
                lab.storage().serve()
            } else {
                host.mount_datastore()
            }
        }
    }
}

fn status(lab: &Lab) -> String {
    let row = |columns: [&str; 7]| {
        let [
            host,
            state,
            address,
            storage,
            process,
            management_cable,
            storage_cable,
        ] = columns;
        format!(
            "{host:<8} {state:<13} {address:<11} {storage:<11} {process:>8}  {management_cable:<18} {storage_cable}\n"
        )
    };
    let mut text = row([
        "HOST",
        "STATE",
        "ADDRESS",
        "STORAGE",
        "PROCESS",
        "MANAGEMENT CABLE",
        "STORAGE CABLE",
    ]);
    for host in lab.all() {
        text += &row([
            &host.name,
            host.state(),
            &host.address.to_string(),
            &host.storage_address.to_string(),
            &host.process_id().map_or("-".into(), |id| id.to_string()),
            host.cable(Cable::Management).describe(),
            host.cable(Cable::Storage).describe(),
        ]);
    }
    text
}

/// Carries a command's streams between the host and the connection.
fn relay(running: &Running, mut from: BufReader<&UnixStream>, to: &UnixStream) -> Ended {
    let input = running.input();
    let Ok(stop) = to.try_clone() else {
        return Ended::NotStarted("no more descriptors".into());
    };
    thread::scope(|scope| {
        scope.spawn(move || {
            while let Ok(frame) = Frame::read(&mut from) {
                if frame.kind == Kind::Kill || input.write(&frame.payload, COMMAND_LIMIT).is_err() {
                    return input.kill();
                }
                if frame.payload.is_empty() {
                    let _ = input.close();
                }
            }
            // Whoever asked has gone.
            input.kill();
        });
        let deadline = Instant::now() + COMMAND_LIMIT;
        let ended = loop {
            let sent = match running.next(deadline) {
                Some(Event::Output(bytes)) => Frame::new(Kind::Output, 0, bytes).write(&mut &*to),
                Some(Event::Error(bytes)) => Frame::new(Kind::Error, 0, bytes).write(&mut &*to),
                Some(Event::Ended(ended)) => break ended,
                None => break Ended::NotStarted("the host is gone".into()),
            };
            if sent.is_err() {
                break Ended::Signal(libc::SIGPIPE);
            }
        };
        // Ends the thread that waits for more input.
        let _ = stop.shutdown(std::net::Shutdown::Read);
        ended
    })
}

/// Asks the supervisor of the lab `name`; copies output and errors to where they are told, and
/// `input`, if any, to the command. Gives the exit code.
pub fn ask(
    name: &str,
    request: &Request,
    input: Option<Box<dyn Read + Send>>,
    output: &mut dyn Write,
    errors: &mut dyn Write,
) -> Result<i32> {
    let mut connection = connect(name)?;
    let mut line = serde_json::to_string(request).map_err(|error| error.to_string())?;
    line.push('\n');
    connection
        .write_all(line.as_bytes())
        .during("ask", "the lab's supervisor")?;
    if let Some(mut input) = input {
        let writing = Mutex::new(
            connection
                .try_clone()
                .during("ask", "the lab's supervisor")?,
        );
        thread::spawn(move || {
            let mut writing = writing.into_inner().unwrap_or_else(PoisonError::into_inner);
            let mut buffer = vec![0; PAYLOAD_LIMIT_BYTES];
            loop {
                let bytes = input.read(&mut buffer).unwrap_or(0);
                if Frame::new(Kind::Input, 0, &buffer[..bytes])
                    .write(&mut writing)
                    .is_err()
                    || bytes == 0
                {
                    return;
                }
            }
        });
    }
    loop {
        let gone = |cause| LabError::Agent {
            host: "the supervisor".into(),
            cause,
        };
        let frame = Frame::read(&mut connection).map_err(gone)?;
        match frame.kind {
            Kind::Output => output
                .write_all(&frame.payload)
                .and_then(|()| output.flush())
                .during("write", "output")?,
            Kind::Error => errors.write_all(&frame.payload).during("write", "errors")?,
            Kind::Exit => {
                return Ok(match serde_json::from_slice(&frame.payload) {
                    Ok(Ended::Code(code)) => code,
                    Ok(Ended::Signal(signal)) => 128 + signal,
                    Ok(Ended::NotStarted(why)) => return Err(why.into()),
                    Err(error) => return Err(error.to_string().into()),
                });
            }
            _ => {}
        }
    }
}

/// Connects to the supervisor of the lab `name`.
fn connect(name: &str) -> Result<UnixStream> {
    let socket = ShortPath::to_socket(name)?;
    UnixStream::connect(socket.path())
        .map_err(|_| LabError::Other(format!("no lab {name} is up; start one with `lab up`")))
}

/// Whether a lab of this name is up.
pub fn is_up(name: &str) -> bool {
    connect(name).is_ok()
}
