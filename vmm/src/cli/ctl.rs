//! `vmm ctl`: the control API for people.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use vmm_core::control::Refusal;

use crate::error::with_remedy;

/// Longest line of an answer's head, and most lines of it.
const HEAD_LINE_MAX: u64 = 8 << 10;
const HEAD_LINES_MAX: usize = 64;
/// Longest answer to anything but `events`.
const ANSWER_MAX: u64 = 4 << 20;

#[derive(Debug, Args)]
/// What the command line says.
pub struct Arguments {
    /// The guest's API socket.
    #[arg(long, value_name = "PATH")]
    api_socket: PathBuf,
    /// What to do.
    verb: Verb,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Verb {
    /// What the guest is and does.
    Info,
    /// What it has done.
    Counters,
    /// How things stand and what happens from now on, a line of JSON each.
    Events,
    /// Stop it for a while.
    Pause,
    /// Go on.
    Resume,
    /// Press the power button.
    PowerButton,
    /// Cut its power.
    PowerOff,
    /// Reset it.
    Reset,
    /// How far its latest migration is, or how it ended.
    Migration,
    /// Give that migration up; the guest goes on here unless it has moved already.
    CancelMigration,
}

/// Send what the command line asks for, and print the answer.
pub fn main(arguments: &Arguments) -> Result<(), String> {
    let (method, path) = match arguments.verb {
        Verb::Info => ("GET", "/v1/info"),
        Verb::Counters => ("GET", "/v1/counters"),
        Verb::Events => ("GET", "/v1/events"),
        Verb::Pause => ("PUT", "/v1/pause"),
        Verb::Resume => ("PUT", "/v1/resume"),
        Verb::PowerButton => ("PUT", "/v1/power-button"),
        Verb::PowerOff => ("PUT", "/v1/power-off"),
        Verb::Reset => ("PUT", "/v1/reset"),
        Verb::Migration => ("GET", "/v1/migration"),
        Verb::CancelMigration => ("DELETE", "/v1/migration"),
    };
    let mut answer = request(&arguments.api_socket, method, path, None)?;
    if matches!(arguments.verb, Verb::Events) {
        return answer.stream();
    }
    let body = answer.body()?;
    if !body.is_empty() {
        let json: serde_json::Value =
            serde_json::from_slice(&body).map_err(|error| format!("a damaged answer: {error}"))?;
        println!("{json:#}");
    }
    Ok(())
}

/// A successful answer, its head read.
pub struct Answer {
    reader: BufReader<UnixStream>,
    is_chunked: bool,
    bytes: Option<u64>,
}

/// Send one request to the API at `socket`; a refusal is an error.
pub fn request(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&[u8]>,
) -> Result<Answer, String> {
    let failed = |error: io::Error| {
        let socket = socket.display();
        if error.kind() == io::ErrorKind::PermissionDenied {
            let why = with_remedy(&error);
            return format!("cannot open the API socket {socket}: {why}");
        }
        format!("no guest answers on the API socket {socket}: {error}; is its VMM running?")
    };
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    let body = body.unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: vmm\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body))
        .map_err(failed)?;
    let (status, mut answer) = Answer::read(stream).map_err(failed)?;
    if (200..300).contains(&status) {
        return Ok(answer);
    }
    let body = answer.body()?;
    Err(match serde_json::from_slice::<Refusal>(&body) {
        Ok(refusal) => refusal.error,
        Err(_) => format!("the VMM answers {path} with HTTP status {status}"),
    })
}

impl Answer {
    fn read(stream: UnixStream) -> io::Result<(u16, Self)> {
        let damaged = || io::Error::from(io::ErrorKind::InvalidData);
        let mut reader = BufReader::new(stream);
        let status = head_line(&mut reader)?;
        let status = status.split(' ').nth(1).and_then(|word| word.parse().ok());
        let mut answer = Self {
            reader,
            is_chunked: false,
            bytes: None,
        };
        for _ in 0..HEAD_LINES_MAX {
            let line = head_line(&mut answer.reader)?.to_ascii_lowercase();
            if line.is_empty() {
                return Ok((status.ok_or_else(damaged)?, answer));
            }
            match line.split_once(':').map(|(key, value)| (key, value.trim())) {
                Some(("transfer-encoding", "chunked")) => answer.is_chunked = true,
                Some(("content-length", bytes)) => answer.bytes = bytes.parse().ok(),
                _ => {}
            }
        }
        Err(damaged())
    }

    /// The whole body.
    pub fn body(&mut self) -> Result<Vec<u8>, String> {
        let mut body = Vec::new();
        let read = if self.is_chunked {
            let mut all = Ok(());
            while let Some(chunk) = self.chunk()? {
                body.extend(chunk);
                if body.len() as u64 > ANSWER_MAX {
                    all = Err(io::ErrorKind::FileTooLarge.into());
                    break;
                }
            }
            all
        } else {
            let limit = self.bytes.unwrap_or(ANSWER_MAX).min(ANSWER_MAX);
            let mut part = (&mut self.reader).take(limit);
            part.read_to_end(&mut body).map(drop)
        };
        read.map_err(|error| format!("cannot read the VMM's answer: {error}"))?;
        Ok(body)
    }

    /// Print the body as it comes.
    fn stream(mut self) -> Result<(), String> {
        while let Some(chunk) = self.chunk()? {
            let mut out = io::stdout().lock();
            if out.write_all(&chunk).and_then(|()| out.flush()).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The next chunk (RFC 9112 §7.1); `None` at the end.
    fn chunk(&mut self) -> Result<Option<Vec<u8>>, String> {
        let mut next = || -> io::Result<Vec<u8>> {
            let damaged = |_| io::Error::from(io::ErrorKind::InvalidData);
            let size = head_line(&mut self.reader)?;
            let size = u64::from_str_radix(size.trim(), 16).map_err(damaged)?;
            if size > ANSWER_MAX {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            let mut chunk = vec![0; size as usize + 2];
            self.reader.read_exact(&mut chunk)?;
            chunk.truncate(size as usize);
            Ok(chunk)
        };
        match next() {
            Ok(chunk) if chunk.is_empty() => Ok(None),
            Ok(chunk) => Ok(Some(chunk)),
            // The guest ended, and its VMM with it.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(format!("cannot read the VMM's answer: {error}")),
        }
    }
}

fn head_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    let bytes = reader.take(HEAD_LINE_MAX).read_line(&mut line)?;
    if bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    line.truncate(line.trim_end().len());
    Ok(line)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer_of(said: &[u8]) -> io::Result<(u16, Answer)> {
        let (ours, mut theirs) = UnixStream::pair()?;
        theirs.write_all(said)?;
        drop(theirs);
        Answer::read(ours)
    }

    #[test]
    fn answers_are_read_whole_or_in_chunks() {
        for said in [
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbodymore",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n",
        ] {
            let (status, mut answer) = answer_of(said.as_bytes()).unwrap();
            assert_eq!((status, answer.body()), (200, Ok(b"body".to_vec())));
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(
            head in prop::sample::select(vec![
                "",
                "HTTP/1.1 200 OK\r\n",
                "HTTP/1.1 200 OK\r\n\r\n",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1f",
            ]),
            rest in prop::collection::vec(any::<u8>(), 0..512),
        ) {
            if let Ok((_, mut answer)) = answer_of(&[head.as_bytes(), &rest].concat()) {
                let _ = answer.body();
            }
        }
    }
}
