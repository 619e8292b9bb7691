//! One running command: its streams on threads, its end reported when all of them are done.

use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use lab_agent::frame::{Kind, PAYLOAD_LIMIT_BYTES};
use lab_agent::{Ended, Exec};

use crate::port::Sender;

/// A command that was started.
pub struct Command {
    process_group: i32,
    // Bounded by the lab: never more than INPUT_WINDOW_BYTES are on their way.
    input: mpsc::Sender<Vec<u8>>,
    ended: Arc<AtomicBool>,
}

impl Command {
    /// Starts what `request` asks for; a failure is reported on the channel.
    pub fn start(sender: &Sender, channel: u32, request: &[u8]) -> Option<Self> {
        match spawn(request) {
            Ok(child) => Some(Self::attend(sender.clone(), channel, child)),
            Err(why) => {
                report(sender, channel, &Ended::NotStarted(why));
                None
            }
        }
    }

    fn attend(sender: Sender, channel: u32, mut child: Child) -> Self {
        let process_group = child.id().cast_signed();
        let (input, chunks) = mpsc::channel();
        let ended = Arc::new(AtomicBool::new(false));
        if let Some(stdin) = child.stdin.take() {
            let sender = sender.clone();
            thread::spawn(move || feed(&sender, channel, stdin, &chunks));
        }
        let output = child
            .stdout
            .take()
            .map(|stream| forward(&sender, channel, Kind::Output, stream));
        let error = child
            .stderr
            .take()
            .map(|stream| forward(&sender, channel, Kind::Error, stream));
        let done = ended.clone();
        thread::spawn(move || {
            // Output first, then the end: whoever sees the end has seen all of it. A background
            // process that keeps the streams open keeps the command open, as with ssh.
            for thread in [output, error].into_iter().flatten() {
                let _ = thread.join();
            }
            let outcome = match child.wait() {
                Ok(status) => match (status.code(), status.signal()) {
                    (Some(code), _) => Ended::Code(code),
                    (None, signal) => Ended::Signal(signal.unwrap_or_default()),
                },
                Err(error) => Ended::NotStarted(error.to_string()),
            };
            done.store(true, Ordering::Release);
            report(&sender, channel, &outcome);
        });
        Self {
            process_group,
            input,
            ended,
        }
    }

    /// Bytes for its standard input; none closes it.
    pub fn input(&self, bytes: Vec<u8>) {
        let _ = self.input.send(bytes);
    }

    /// Kills it and all it started.
    pub fn kill(&self) {
        if !self.ended() {
            // SAFETY: kill takes no pointers; the group is that of our own child, which its
            // thread has not waited for yet, so the number cannot have been given out again.
            unsafe { libc::kill(-self.process_group, libc::SIGKILL) };
        }
    }

    /// Whether its end has been reported.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

fn spawn(request: &[u8]) -> Result<Child, String> {
    let exec: Exec = serde_json::from_slice(request).map_err(|error| error.to_string())?;
    let (program, arguments) = exec.command.split_first().ok_or("no command given")?;
    std::process::Command::new(program)
        .args(arguments)
        .envs(exec.environment)
        .current_dir("/root")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot run {program}: {error}"))
}

fn feed(sender: &Sender, channel: u32, mut stdin: ChildStdin, chunks: &Receiver<Vec<u8>>) {
    for bytes in chunks {
        // A command that closed its input must not stop the lab from sending the rest.
        if bytes.is_empty() {
            break;
        }
        let taken = bytes.len() as u64;
        let open = stdin.write_all(&bytes).is_ok();
        sender.send(Kind::Taken, channel, taken.to_le_bytes());
        if !open {
            drop(stdin);
            for bytes in chunks {
                sender.send(Kind::Taken, channel, (bytes.len() as u64).to_le_bytes());
            }
            return;
        }
    }
}

fn forward(
    sender: &Sender,
    channel: u32,
    kind: Kind,
    mut from: impl Read + Send + 'static,
) -> thread::JoinHandle<()> {
    let sender = sender.clone();
    thread::spawn(move || {
        let mut buffer = vec![0; PAYLOAD_LIMIT_BYTES];
        while let Ok(bytes @ 1..) = from.read(&mut buffer) {
            sender.send(kind, channel, &buffer[..bytes]);
        }
    })
}

fn report(sender: &Sender, channel: u32, ended: &Ended) {
    let payload = serde_json::to_vec(ended).unwrap_or_default();
    sender.send(Kind::Exit, channel, payload);
}
