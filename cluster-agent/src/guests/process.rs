//! A guest's VMM as a process: spawned so that it outlives the agent, found again by it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;

use super::Host;
use crate::http::client::{Client, Endpoint};
use crate::priority;

/// A VMM answers its control socket at once; one that does not is stuck.
const CONTROL_LIMIT: Duration = Duration::from_secs(5);

/// A running VMM.
pub struct Vmm {
    /// Its control socket.
    pub control: Client,
    exit: AsyncFd<std::os::fd::OwnedFd>,
    pid: Pid,
}

/// Where a guest's VMM answers.
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("api.sock")
}

/// Where a guest's serial console is: its VMM serves several viewers there.
pub fn console(run_dir: &Path) -> PathBuf {
    run_dir.join("console.sock")
}

fn pid_file(run_dir: &Path) -> PathBuf {
    run_dir.join("vmm.pid")
}

/// Does a VMM answer in this directory?
pub fn is_running(run_dir: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket(run_dir)).is_ok()
}

/// Start the VMM of `guest` on the spec in its run directory. It adopts the guest's lease.
pub fn spawn(host: &Host, guest: &str, run_dir: &Path) -> io::Result<Vmm> {
    let mut command = Command::new(&host.vmm);
    command.arg("run").arg(run_dir.join("guest.toml"));
    begin(command, host, guest, run_dir)
}

/// A source that has not called by then will not come.
const SOURCE_WAIT_MAX_S: &str = "60";

/// Start a VMM that waits for `guest` to come by live migration.
pub fn spawn_receiver(host: &Host, guest: &str, run_dir: &Path) -> io::Result<Vmm> {
    let mut command = Command::new(&host.vmm);
    command
        .arg("receive")
        .arg("--listen")
        .arg(SocketAddr::new(host.address, 0).to_string())
        .arg("--tls-dir")
        .arg(&host.identity)
        .args(["--wait-max-s", SOURCE_WAIT_MAX_S, "--once"]);
    begin(command, host, guest, run_dir)
}

fn begin(mut command: Command, host: &Host, guest: &str, run_dir: &Path) -> io::Result<Vmm> {
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(run_dir.join("vmm.log"))?;
    // A socket that a dead VMM left behind would look like an answer.
    remove_if_there(&socket(run_dir))?;
    let console = format!("socket={}", console(run_dir).display());
    command
        .arg("--api-socket")
        .arg(socket(run_dir))
        .arg("--console")
        .arg(console)
        .arg("--datastore")
        .arg(host.store.root())
        .args(["--guest", guest])
        .args(["--host", host.keeper.host().name()])
        .arg("--run-dir")
        .arg(host.keeper.host().run_dir())
        .stdin(Stdio::null())
        .stdout(File::options().append(true).open(run_dir.join("vmm.log"))?)
        .stderr(log)
        // A group of its own: signals to the agent's are not meant for guests.
        .process_group(0);
    let mut child = priority::as_a_guest(|| command.spawn()).map_err(|error| {
        let vmm = host.vmm.display();
        io::Error::new(error.kind(), format!("cannot run {vmm}: {error}"))
    })?;
    let pid = Pid::from_child(&child);
    fs::write(pid_file(run_dir), pid.as_raw_nonzero().to_string())?;
    let vmm = watch(pid, run_dir)?;
    // Collects the exit status when the time comes; the lease tells what it meant.
    std::thread::Builder::new()
        .name("reap".into())
        .spawn(move || child.wait())?;
    Ok(vmm)
}

/// Find the VMM of an earlier agent again.
pub fn find(run_dir: &Path) -> io::Result<Vmm> {
    let text = fs::read_to_string(pid_file(run_dir))?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
    watch(pid, run_dir)
}

fn watch(pid: Pid, run_dir: &Path) -> io::Result<Vmm> {
    let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
    // SAFETY: an OwnedFd stays the same open descriptor until the AsyncFd drops it.
    let exit = unsafe { AsyncFd::register(pidfd) }?;
    let control = Client::new(Endpoint::Unix(socket(run_dir)), CONTROL_LIMIT);
    Ok(Vmm { control, exit, pid })
}

impl Vmm {
    /// Returns when the process has ended.
    pub async fn ended(&self) {
        // A pidfd becomes readable when its process ends (pidfd_open(2)).
        let _ = self.exit.readable().await;
    }

    /// Cut its power: the process ends wherever it is.
    pub fn kill(&self) {
        // It may have ended by itself.
        let _ = rustix::process::kill_process(self.pid, rustix::process::Signal::KILL);
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
