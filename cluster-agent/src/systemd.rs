//! What systemd is told: that the agent is ready, lives, goes (`sd_notify(3)`).
//!
//! Without systemd (no `NOTIFY_SOCKET`) nothing is told to anybody.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// So often within its limit the watchdog hears from us, so that one lost message is no death.
const PINGS_PER_LIMIT: u32 = 4;

/// The manager that started us, if one wants to hear from us.
#[derive(Debug, Clone)]
pub struct Manager {
    address: Option<SocketAddr>,
}

impl Manager {
    /// The one that the environment names.
    pub fn from_env() -> Self {
        Self {
            address: env::var_os("NOTIFY_SOCKET").and_then(|name| address(&name)),
        }
    }

    /// Tell it that members and operators are answered from now on.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}\n"));
    }

    /// Tell it that this agent is about to end.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=going; its guests run on\n");
    }

    /// The watchdog that it runs for this process.
    pub fn watchdog(&self) -> Watchdog {
        let ours = env::var("WATCHDOG_PID").map_or(true, |pid| {
            pid.parse::<u32>()
                .is_ok_and(|pid| pid == std::process::id())
        });
        let limit = env::var("WATCHDOG_USEC")
            .ok()
            .filter(|_| ours && self.address.is_some())
            .and_then(|limit_us| limit_us.parse().ok())
            .map(Duration::from_micros);
        Watchdog {
            manager: self.clone(),
            every: limit.map(|limit| limit / PINGS_PER_LIMIT),
            fed: None,
        }
    }

    /// What cannot be told is not worth failing for: the watchdog draws its conclusions.
    fn tell(&self, message: &str) {
        if let Some(address) = &self.address {
            let _ = tell(address, message);
        }
    }
}

fn tell(address: &SocketAddr, message: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not hold up the driver.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(message.as_bytes(), address).map(drop)
}

/// A path, or `@` and a name in the abstract name space.
fn address(name: &OsStr) -> Option<SocketAddr> {
    match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest).ok(),
        [b'/', ..] => SocketAddr::from_pathname(OsString::from(name)).ok(),
        _ => None,
    }
}

/// Kills the agent when it is not fed. Whoever must not get stuck feeds it.
#[derive(Debug)]
pub struct Watchdog {
    manager: Manager,
    every: Option<Duration>,
    fed: Option<Instant>,
}

impl Watchdog {
    /// Say that the caller goes round; cheap enough for every turn of a loop.
    pub fn feed(&mut self) {
        let Some(every) = self.every else { return };
        if self.fed.is_none_or(|fed| fed.elapsed() >= every) {
            self.fed = Some(Instant::now());
            self.manager.tell("WATCHDOG=1\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn paths_and_abstract_names_are_understood_and_the_watchdog_is_fed_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let hidden = format!("@godwit-test-{}", std::process::id());
        let by_name = UnixDatagram::bind_addr(&address(OsStr::new(&hidden)).unwrap()).unwrap();
        for (socket, name) in [(by_path, path.as_os_str()), (by_name, OsStr::new(&hidden))] {
            let manager = Manager {
                address: address(name),
            };
            manager.ready("is here");
            assert_eq!(heard(&socket), "READY=1\nSTATUS=is here\n");
            let mut watchdog = Watchdog {
                manager: manager.clone(),
                every: Some(Duration::from_hours(1)),
                fed: None,
            };
            watchdog.feed();
            watchdog.feed();
            manager.stopping();
            assert_eq!(heard(&socket), "WATCHDOG=1\n");
            assert!(heard(&socket).starts_with("STOPPING=1\n"));
        }
        assert!(address(OsStr::new("relative")).is_none());
    }
}
