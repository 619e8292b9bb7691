//! Commands in a host, and files to and from it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use lab_agent::{Ended, Exec};

use super::{Host, lock};
use crate::agent::{Agent, Event, Running};
use crate::error::During;
use crate::wait::PATIENCE;
use crate::{LabError, Result};

/// How much of a failed command's output its error carries.
const MESSAGE_LIMIT_BYTES: usize = 4000;

/// How a command ended, and what it wrote.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; 128 and the signal's number if a signal ended it, 127 if it never ran.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text, without white space around it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }
}

impl Host {
    fn agent(&self) -> Result<Agent> {
        lock(&self.agent)
            .clone()
            .ok_or_else(|| LabError::Off(self.name.clone()))
    }

    /// Starts a command and leaves its streams to the caller.
    pub fn start_command(&self, command: &[impl AsRef<str>]) -> Result<Running> {
        let command = command
            .iter()
            .map(|word| word.as_ref().to_owned())
            .collect();
        self.agent()?.start(&Exec {
            command,
            environment: Vec::new(),
        })
    }

    /// Runs a command to its end, whatever its exit code.
    pub fn exec(&self, command: &[impl AsRef<str>]) -> Result<Output> {
        self.exec_with(command, &[], PATIENCE)
    }

    /// [`Host::exec`] with bytes on its standard input and a limit of its own; it is killed when
    /// the limit passes.
    pub fn exec_with(
        &self,
        command: &[impl AsRef<str>],
        input: &[u8],
        limit: Duration,
    ) -> Result<Output> {
        let running = self.start_command(command)?;
        let words: Vec<&str> = command.iter().map(AsRef::as_ref).collect();
        let feed = running.input();
        std::thread::scope(|scope| {
            scope.spawn(move || feed.write(input, limit).and_then(|()| feed.close()));
            collect(&running, Instant::now() + limit)
        })
        .ok_or_else(|| LabError::TooLate {
            what: format!("`{}` on host {} ending", words.join(" "), self.name),
            limit,
        })
    }

    /// Runs a shell line that must succeed; gives its standard output, trimmed.
    pub fn run(&self, line: &str) -> Result<String> {
        self.run_within(PATIENCE, line)
    }

    /// [`Host::run`] with a limit of its own.
    pub fn run_within(&self, limit: Duration, line: &str) -> Result<String> {
        let output = self.exec_with(&["sh", "-c", line], &[], limit)?;
        self.require(line, output).map(|output| output.text())
    }

    pub(super) fn require(&self, command: &str, output: Output) -> Result<Output> {
        if output.code == 0 {
            return Ok(output);
        }
        let said = if output.stderr.is_empty() {
            &output.stdout
        } else {
            &output.stderr
        };
        let tail = &said[said.len().saturating_sub(MESSAGE_LIMIT_BYTES)..];
        Err(LabError::Command {
            host: self.name.clone(),
            command: command.into(),
            code: output.code,
            message: String::from_utf8_lossy(tail).trim().into(),
        })
    }

    /// Starts a shell line that goes on by itself, writing to `/var/log/NAME.log` in the host;
    /// gives the number of its process group (`kill -9 -NUMBER` ends all of it).
    pub fn spawn(&self, name: &str, line: &str) -> Result<u32> {
        let line = quoted(line);
        let line = format!("setsid sh -c {line} </dev/null >>/var/log/{name}.log 2>&1 & echo $!");
        let number = self.run(&line)?;
        number
            .parse()
            .map_err(|_| format!("host {} gave no process number but {number:?}", self.name).into())
    }

    /// Writes a file in the host.
    pub fn push(&self, path: &str, content: &[u8]) -> Result<()> {
        let output = self.exec_with(
            &["sh", "-c", "cat > \"$1\"", "sh", path],
            content,
            5 * PATIENCE,
        )?;
        self.require(&format!("cat > {path}"), output).map(drop)
    }

    /// Copies a file of this machine into the host, with its permissions' execute bit.
    pub fn push_file(&self, from: &Path, to: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let content = fs::read(from).during("read", from)?;
        let mode = fs::metadata(from)
            .during("look at", from)?
            .permissions()
            .mode()
            & 0o777;
        // By way of a second name, or a program that runs could not be replaced.
        self.push(&format!("{to}.new"), &content)?;
        self.run(&format!(
            "chmod {mode:o} {0}.new && mv {0}.new {0}",
            quoted(to)
        ))
        .map(drop)
    }

    /// Reads a file of the host.
    pub fn pull(&self, path: &str) -> Result<Vec<u8>> {
        let output = self.exec_with(&["cat", path], &[], 5 * PATIENCE)?;
        self.require(&format!("cat {path}"), output)
            .map(|output| output.stdout)
    }

    /// Gets a page from anything on the private networks, as seen from this host.
    pub fn http(&self, url: &str) -> Result<String> {
        self.run(&format!("timeout 20 wget -q -O - {}", quoted(url)))
    }

    /// Carries a TCP connection's bytes: from this host to `address:port`, as netcat.
    pub fn connect(&self, address: &str, port: u16) -> Result<Running> {
        self.start_command(&["nc", address, &port.to_string()])
    }
}

fn collect(running: &Running, deadline: Instant) -> Option<Output> {
    let mut output = Output {
        code: 0,
        stdout: Vec::new(),
        stderr: Vec::new(),
    };
    loop {
        match running.next(deadline)? {
            Event::Output(bytes) => output.stdout.extend(bytes),
            Event::Error(bytes) => output.stderr.extend(bytes),
            Event::Ended(ended) => {
                output.code = ended.code();
                if let Ended::NotStarted(why) = ended {
                    output.stderr.extend(why.bytes());
                }
                return Some(output);
            }
        }
    }
}

/// A word that the shell takes as it is.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}
