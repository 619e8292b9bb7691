//! `lab console`: a terminal on a host's serial line.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use lab::supervisor::{Request, ask};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// Ctrl-], as in telnet.
const ESCAPE: u8 = 0x1d;

/// The terminal without line editing and echo; as it was again when dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn set() -> Self {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Self(None);
        }
        let before = tcgetattr(&stdin).ok();
        if let Some(mut raw) = before.clone() {
            raw.make_raw();
            let _ = tcsetattr(&stdin, OptionalActions::Now, &raw);
        }
        Self(before)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Carries bytes between terminal and console until the escape is typed or the host ends.
pub fn take(name: &str, host: &str) -> lab::Result<i32> {
    let mut path = Vec::new();
    let code = ask(
        name,
        &Request::Console { host: host.into() },
        None,
        &mut path,
        &mut io::stderr(),
    )?;
    if code != 0 {
        return Ok(code);
    }
    let path = String::from_utf8_lossy(&path).into_owned();
    let failed =
        |error: io::Error| format!("the console of host {host} is not there or taken: {error}");
    let mut console = UnixStream::connect(path).map_err(failed)?;
    let mut typing = console.try_clone().map_err(failed)?;
    eprintln!("console of host {host}; Ctrl-] leaves it, Enter shows a prompt");
    let raw = Raw::set();
    thread::spawn(move || {
        let mut keys = [0; 256];
        loop {
            let bytes = io::stdin().read(&mut keys).unwrap_or(0);
            let escape = keys[..bytes].iter().position(|&key| key == ESCAPE);
            let _ = typing.write_all(&keys[..escape.unwrap_or(bytes)]);
            if bytes == 0 || escape.is_some() {
                let _ = typing.shutdown(std::net::Shutdown::Both);
                return;
            }
        }
    });
    let mut shown = [0; 4096];
    while let Ok(bytes @ 1..) = console.read(&mut shown) {
        if io::stdout()
            .write_all(&shown[..bytes])
            .and_then(|()| io::stdout().flush())
            .is_err()
        {
            break;
        }
    }
    drop(raw);
    println!();
    Ok(0)
}
