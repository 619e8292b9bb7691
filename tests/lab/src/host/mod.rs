//! One emulated host: commands in it, files to and from it, and everything that can befall it.
//!
//! ```text
//!            power_on                freeze / stop_clock
//!   Off ------------------> Running <-------------------> Frozen
//!    ^                        |      thaw / start_clock      |
//!    +------- power_off ------+-----------------------------+
//! ```

mod commands;
mod faults;
mod traces;

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::Result;
use crate::agent::Agent;
use crate::error::During;
use crate::machine::Machine;
use crate::network::CableState;
use crate::process::Spawner;
use crate::qmp::Qmp;
use crate::template::{Template, save_or_load};
use crate::wait::PATIENCE;
pub use commands::{Output, quoted};
pub use faults::{Cable, Direction};

/// Where the datastore is mounted in every host.
pub const DATASTORE: &str = "/srv/vmstore";
/// Where the default route of every host leads: the storage host, which forwards nothing, but
/// programs that look for the machine's main address ask for the default route.
const GATEWAY: &str = "10.0.0.250";

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

    /// Starts it as a fresh clone with its own identity, clock and randomness. RAM is as after a
    /// boot, disks are as it left them. Nothing is mounted but our programs.
    pub fn power_on(&self) -> Result<()> {
        self.power_on_as(&self.machine)
    }

    /// The same with a lesser processor, which lacks `feature` (QEMU's name for it). The kernel
    /// has met the full one at its boot; /dev/kvm, made anew, offers no more than there is.
    pub fn power_on_lacking(&self, feature: &'static str) -> Result<()> {
        self.power_on_as(&Machine {
            lacks: Some(feature),
            ..self.machine.clone()
        })?;
        self.run(
            "for module in kvm_amd kvm_intel; do \
             ! grep -q \"^$module \" /proc/modules || { rmmod $module && modprobe $module; }; done; \
             chgrp kvm /dev/kvm; chmod 660 /dev/kvm",
        )
        .map(drop)
    }

    fn power_on_as(&self, machine: &Machine) -> Result<()> {
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
        let mut command = machine.command();
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

    /// Mounts the datastore of the storage host at [`DATASTORE`].
    pub fn mount_datastore(&self) -> Result<()> {
        self.run(&format!(
            "host-mount {}:/ {DATASTORE}",
            crate::world::STORAGE_SERVER
        ))
        .map(drop)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.power_off();
    }
}
