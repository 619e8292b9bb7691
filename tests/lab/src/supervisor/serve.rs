//! The supervisor's side: does what is asked, one connection per act.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use lab_agent::Ended;
use lab_agent::frame::{Frame, Kind, PAYLOAD_LIMIT_BYTES};

use super::{Fault, Request, ShortPath};
use crate::agent::{Event, Running};
use crate::error::During;
use crate::host::{Cable, Host};
use crate::{Lab, Result};

/// Longest request line.
const REQUEST_LIMIT_BYTES: u64 = 1 << 20;
/// How long a command may run for a connected person.
const COMMAND_LIMIT: Duration = Duration::from_hours(24);

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
