//! The side of those who ask.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::thread;

use lab_agent::Ended;
use lab_agent::frame::{Frame, Kind, PAYLOAD_LIMIT_BYTES};

use super::{Request, ShortPath};
use crate::error::During;
use crate::{LabError, Result};

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
