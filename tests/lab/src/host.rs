//! One emulated host: commands in it, files to and from it, and everything that can befall it.
//!
//! ```text
//!            power_on                freeze / stop_clock
//!   Off ------------------> Running <-------------------> Frozen
//!    ^                        |      thaw / start_clock      |
//!    +------- power_off ------+-----------------------------+
//! ```

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lab_agent::{Ended, Exec};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::agent::{Agent, Event, Running};
use crate::error::During;
use crate::machine::Machine;
use crate::network::CableState;
use crate::process::Spawner;
use crate::qmp::Qmp;
use crate::template::{Template, save_or_load};
use crate::wait::PATIENCE;
use crate::{LabError, Result};

/// Where the datastore is mounted in every host.
pub const DATASTORE: &str = "/srv/vmstore";
/// Where the default route of every host leads: the storage host, which forwards nothing, but
/// programs that look for the machine's main address ask for the default route.
const GATEWAY: &str = "10.0.0.250";
/// How much of a failed command's output its error carries.
const MESSAGE_LIMIT_BYTES: usize = 4000;

/// Which of a host's two cables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cable {
    /// `br0`: agents, migrations and guests.
    Management,
    /// `eth1`: the way to the storage host.
    Storage,
}

/// Which frames a cut loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// What the host sends.
    FromHost,
    /// What is sent to it.
    ToHost,
    /// All.
    Both,
}

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

/// An emulated host. It dies with this value.
#[derive(Debug)]
pub struct Host {
    /// Its name, also its host name.
    pub name: String,
    /// Its address on the management network.
    pub address: Ipv4Addr,
    /// Its address on the storage network.
    pub storage_address: Ipv4Addr,
    number: u8,
    machine: Machine,
    template: Template,
    spawner: Spawner,
    cables: [Arc<CableState>; 2],
    directory: PathBuf,
    // The agent apart from the rest: commands run while somebody freezes or cuts.
    power: Mutex<Option<Power>>,
    agent: Mutex<Option<Agent>>,
}

#[derive(Debug)]
struct Power {
    child: Child,
    qmp: Qmp,
}

/// What a host needs to exist; see [`Host::new`].
#[derive(Debug)]
pub(crate) struct Parts {
    pub name: String,
    /// 1 to 254: the last byte of its addresses.
    pub number: u8,
    pub machine: Machine,
    pub template: Template,
    pub spawner: Spawner,
    pub cables: [Arc<CableState>; 2],
    pub directory: PathBuf,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            name,
            number,
            machine,
            template,
            spawner,
            cables,
            directory,
        } = parts;
        Self {
            address: Ipv4Addr::new(10, 0, 0, number),
            storage_address: Ipv4Addr::new(10, 1, 0, number),
            name,
            number,
            machine,
            template,
            spawner,
            cables,
            directory,
            power: Mutex::new(None),
            agent: Mutex::new(None),
        }
    }

    // --- Power ---

    /// Starts it as a fresh clone with its own identity, clock and randomness. RAM is as after a
    /// boot, disks are as it left them. Nothing is mounted but our programs.
    pub fn power_on(&self) -> Result<()> {
        let mut power = lock(&self.power);
        if power.is_some() {
            return Ok(());
        }
        let log = self.directory.join("qemu.log");
        let errors = fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .during("open", &log)?;
        let mut command = self.machine.command();
        command.stdin(Stdio::null()).stderr(errors);
        let mut child = self.spawner.spawn(command)?;
        match self.bring_up(&mut child) {
            Ok((qmp, agent)) => {
                *lock(&self.agent) = Some(agent);
                *power = Some(Power { child, qmp });
                drop(power);
                self.identify()
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(format!(
                    "cannot start host {}: {error}; see {}",
                    self.name,
                    log.display()
                )
                .into())
            }
        }
    }

    fn bring_up(&self, child: &mut Child) -> Result<(Qmp, Agent)> {
        let mut qmp = Qmp::connect(&self.machine.qmp_socket(), || match child.try_wait() {
            Ok(None) => Ok(()),
            _ => Err("QEMU ended".into()),
        })?;
        let agent = Agent::connect(&self.name, &self.machine.agent_socket())?;
        save_or_load(&mut qmp, "migrate-incoming", "cat", &self.template.state())?;
        qmp.execute("cont", &json!({}))?;
        agent.ping(PATIENCE)?;
        Ok((qmp, agent))
    }

    fn identify(&self) -> Result<()> {
        let mut seed = [0; 64];
        fs::File::open("/dev/urandom")
            .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut seed))
            .during("read", "/dev/urandom")?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let Self {
            name,
            address,
            storage_address,
            number,
            ..
        } = self;
        // Randomness before the machine id is made, the clock before anything notes the time.
        let line = format!(
            "set -e; lab-agent seed; date -u -s @{now} >/dev/null; mount -o ro /dev/vda /opt/godwit; \
             host-configure name={name} uplink=eth0 mac=52:54:00:60:00:{number:02x} address={address}/24 gateway={GATEWAY} \
             storage=eth1,{storage_address}/24,52:54:00:60:01:{number:02x}; ip link set eth1 mtu 9000"
        );
        let output = self.exec_with(&["sh", "-c", &line], &seed, PATIENCE)?;
        self.require(&line, output).map(drop)
    }

    /// Cuts the power: no shutdown, nothing flushed that the host had only in memory.
    pub fn power_off(&self) -> Result<()> {
        let taken = lock(&self.power).take();
        *lock(&self.agent) = None;
        if let Some(mut power) = taken {
            power.child.kill().during("kill", &self.name)?;
            power.child.wait().during("wait for", &self.name)?;
        }
        Ok(())
    }

    /// Whether it has power; a host that switched itself off has none.
    pub fn is_on(&self) -> bool {
        let mut power = lock(&self.power);
        let ended = power
            .as_mut()
            .is_some_and(|power| !matches!(power.child.try_wait(), Ok(None)));
        if ended {
            *power = None;
            *lock(&self.agent) = None;
        }
        power.is_some()
    }

    /// Off, running, frozen or with its clock stopped, in words.
    pub fn state(&self) -> &'static str {
        if !self.is_on() {
            return "off";
        }
        let mut power = lock(&self.power);
        let Some(power) = power.as_mut() else {
            return "off";
        };
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", power.child.id())).unwrap_or_default();
        // The state letter follows the name, which is in parentheses; T is stopped by a signal.
        if stat
            .rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('T'))
        {
            return "frozen";
        }
        match power.qmp.execute("query-status", &json!({})) {
            Ok(status) if status["running"] == true => "running",
            _ => "clock stopped",
        }
    }

    /// Process number of its QEMU.
    pub fn process_id(&self) -> Option<u32> {
        lock(&self.power).as_ref().map(|power| power.child.id())
    }

    // --- Faults ---

    /// Stops every instruction of it at once; its clock jumps when it is thawed.
    pub fn freeze(&self) -> Result<()> {
        self.signal(libc::SIGSTOP)
    }

    /// Ends [`Host::freeze`].
    pub fn thaw(&self) -> Result<()> {
        self.signal(libc::SIGCONT)
    }

    fn signal(&self, signal: i32) -> Result<()> {
        let power = lock(&self.power);
        let power = power
            .as_ref()
            .ok_or_else(|| LabError::Off(self.name.clone()))?;
        // SAFETY: kill takes no pointers; the child is ours and has not been waited for.
        match unsafe { libc::kill(power.child.id().cast_signed(), signal) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()).during("send a signal to", &self.name),
        }
    }

    /// Freezes it together with its clock, as a hypervisor's pause does: afterwards it believes
    /// that no time has passed. The hardest case for anything that keeps deadlines.
    pub fn stop_clock(&self) -> Result<()> {
        self.qmp("stop")
    }

    /// Ends [`Host::stop_clock`].
    pub fn start_clock(&self) -> Result<()> {
        self.qmp("cont")
    }

    fn qmp(&self, command: &str) -> Result<()> {
        let mut power = lock(&self.power);
        let power = power
            .as_mut()
            .ok_or_else(|| LabError::Off(self.name.clone()))?;
        power.qmp.execute(command, &json!({})).map(drop)
    }

    /// Loses all frames of one cable in a direction; the carrier stays up.
    pub fn cut(&self, cable: Cable, direction: Direction) {
        self.set_cut(cable, direction, true);
    }

    /// Ends [`Host::cut`].
    pub fn heal(&self, cable: Cable, direction: Direction) {
        self.set_cut(cable, direction, false);
    }

    fn set_cut(&self, cable: Cable, direction: Direction, cut: bool) {
        let state = &self.cables[cable as usize];
        if direction != Direction::ToHost {
            state.from_host_cut.store(cut, Ordering::Relaxed);
        }
        if direction != Direction::FromHost {
            state.to_host_cut.store(cut, Ordering::Relaxed);
        }
    }

    /// One cable's cuts and counters.
    pub fn cable(&self, cable: Cable) -> &CableState {
        &self.cables[cable as usize]
    }

    // --- Commands and files ---

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

    fn require(&self, command: &str, output: Output) -> Result<Output> {
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

    /// Mounts the datastore of the storage host at [`DATASTORE`].
    pub fn mount_datastore(&self) -> Result<()> {
        self.run(&format!(
            "host-mount {}:/ {DATASTORE}",
            crate::world::STORAGE_SERVER
        ))
        .map(drop)
    }

    // --- Traces ---

    /// The socket of its serial console.
    pub fn console_socket(&self) -> PathBuf {
        self.machine.console_socket()
    }

    /// The last lines of its console.
    pub fn console_tail(&self, lines: usize) -> String {
        let log = fs::read(&self.machine.console_log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Copies `/var/log` and the kernel's log into the run's directory.
    pub fn collect_logs(&self) -> Result<()> {
        if !self.is_on() {
            return Ok(());
        }
        let line = [
            "sh",
            "-c",
            "dmesg > /var/log/dmesg; ps w > /var/log/ps; tar -C /var/log -c .",
        ];
        let output = self.exec_with(&line, &[], PATIENCE / 4)?;
        let directory = self.directory.join("logs");
        fs::create_dir_all(&directory).during("create", &directory)?;
        let mut tar = std::process::Command::new("tar");
        tar.arg("-x")
            .arg("-C")
            .arg(&directory)
            .stdin(Stdio::piped())
            .stderr(Stdio::null());
        let mut tar = tar.spawn().during("run", "tar")?;
        if let Some(mut stdin) = tar.stdin.take() {
            stdin.write_all(&output.stdout).during("write to", "tar")?;
        }
        tar.wait().during("wait for", "tar").map(drop)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.power_off();
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
