//! The template: one host booted once and saved; every host of every lab is a clone of it.
//!
//! RAM stays in the file it lived in (`x-ignore-shared`), so that a clone maps it privately and
//! starts in a fraction of a second; only device state is written out and read back.
//!
//! What must differ between clones is not in the template: identity, clock and randomness are
//! given when a clone starts, nfs modules are loaded after that (they note when they started, and
//! a server tells two lives of one client apart by that), and nothing has read the boot id yet
//! (the kernel makes it up at the first look).

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::agent::Agent;
use crate::artefacts::{self, Appliance, BuildLock};
use crate::disks;
use crate::error::During;
use crate::machine::{DATA_DISK_BYTES, Machine, QEMU, TOOLS_DISK_BYTES};
use crate::network::Switch;
use crate::process::{Spawner, run_tool};
use crate::qmp::Qmp;
use crate::wait::PATIENCE;
use crate::{LabError, Result};

/// One boot in dozens hangs before it begins.
const BOOT_ATTEMPTS: u32 = 3;
/// How many templates are kept; older ones are removed.
const TEMPLATES_KEPT: usize = 2;

/// A saved host.
#[derive(Clone, Debug)]
pub struct Template {
    /// What it was booted from, which clones must name too.
    pub appliance: Appliance,
    /// RAM size.
    pub memory_mib: u32,
    directory: PathBuf,
    /// How long it took to make; nothing if it was there.
    pub made_in: Option<Duration>,
}

impl Template {
    /// The template for this appliance and size, made now if there is none.
    pub fn ensure(
        spawner: &Spawner,
        appliance: Appliance,
        memory_mib: u32,
        _held: &BuildLock,
    ) -> Result<Self> {
        let templates = artefacts::build_directory().join("lab/templates");
        let directory = templates.join(key(&appliance, memory_mib)?);
        let mut template = Self {
            appliance,
            memory_mib,
            directory,
            made_in: None,
        };
        if template.directory.join("complete").exists() {
            return Ok(template);
        }
        let begun = Instant::now();
        let mut last = None;
        for _ in 0..BOOT_ATTEMPTS {
            match template.make(spawner) {
                Ok(()) => {
                    template.made_in = Some(begun.elapsed());
                    remove_old(&templates);
                    return Ok(template);
                }
                Err(error) => last = Some(error),
            }
        }
        let why = last.map(|error| error.to_string()).unwrap_or_default();
        let log = template.directory.join("console.log");
        Err(format!(
            "cannot boot the template in {BOOT_ATTEMPTS} attempts: {why}; see {}",
            log.display()
        )
        .into())
    }

    /// File that holds its RAM.
    pub fn memory(&self) -> PathBuf {
        self.directory.join("memory")
    }

    /// File that holds the state of its devices.
    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    fn make(&self, spawner: &Spawner) -> Result<()> {
        let directory = &self.directory;
        let _ = fs::remove_dir_all(directory);
        fs::create_dir_all(directory).during("create", directory)?;
        let sockets = artefacts::socket_directory()?;
        let cables = [sockets.path().join("net0"), sockets.path().join("net1")];
        let _switch = Switch::start(&cables)?;
        let machine = Machine {
            name: "template".into(),
            kernel: self.appliance.kernel.clone(),
            initramfs: self.appliance.initramfs.clone(),
            lacks: None,
            memory_mib: self.memory_mib,
            memory: self.memory(),
            memory_shared: true,
            tools_disk: directory.join("tools"),
            data_disk: directory.join("data"),
            sockets: sockets.path().into(),
            cables,
            console_log: directory.join("console.log"),
        };
        disks::blank(&machine.tools_disk, TOOLS_DISK_BYTES)?;
        disks::blank(&machine.data_disk, DATA_DISK_BYTES)?;
        let log = directory.join("qemu.log");
        let mut command = machine.command();
        command
            .stdin(Stdio::null())
            .stderr(fs::File::create(&log).during("create", &log)?);
        let mut child = spawner.spawn(command)?;
        let result = self.boot_and_save(&machine, || match child.try_wait() {
            Ok(None) => Ok(()),
            _ => Err(LabError::Other(format!(
                "QEMU ended; see {}",
                log.display()
            ))),
        });
        let _ = child.kill();
        let _ = child.wait();
        result
    }

    fn boot_and_save(&self, machine: &Machine, alive: impl FnMut() -> Result<()>) -> Result<()> {
        let mut qmp = Qmp::connect(&machine.qmp_socket(), alive)?;
        let agent = Agent::connect("template", &machine.agent_socket())?;
        agent.ping(PATIENCE)?;
        qmp.execute("stop", &json!({}))?;
        save_or_load(&mut qmp, "migrate", "cat >", &self.state())?;
        qmp.execute("quit", &json!({}))?;
        let complete = self.directory.join("complete");
        fs::write(&complete, "").during("write", complete)
    }
}

/// Moves the state of the devices, and not the RAM, to or from a file.
pub fn save_or_load(qmp: &mut Qmp, verb: &str, shell: &str, state: &Path) -> Result<()> {
    let capability = json!({"capabilities": [{"capability": "x-ignore-shared", "state": true}]});
    qmp.execute("migrate-set-capabilities", &capability)?;
    qmp.execute(
        verb,
        &json!({"uri": format!("exec:{shell} '{}'", state.display())}),
    )?;
    qmp.migration_completed()
}

/// Names the template after all that clones must share with it.
fn key(appliance: &Appliance, memory_mib: u32) -> Result<String> {
    let nowhere = PathBuf::new;
    let machine = Machine {
        name: String::new(),
        kernel: nowhere(),
        initramfs: nowhere(),
        lacks: None,
        memory_mib,
        memory: nowhere(),
        memory_shared: false,
        tools_disk: nowhere(),
        data_disk: nowhere(),
        sockets: nowhere(),
        cables: [nowhere(), nowhere()],
        console_log: nowhere(),
    };
    let mut shape = format!("{:?} {}", machine.command(), machine.shape());
    shape.push_str(&run_tool(Command::new(QEMU).arg("--version"))?);
    let mut name = format!("{:08x}", crc32c::crc32c(shape.as_bytes()));
    for file in [&appliance.kernel, &appliance.initramfs] {
        let sum = crc32c::crc32c(&fs::read(file).during("read", file)?);
        write!(name, "-{sum:08x}").map_err(|error| error.to_string())?;
    }
    Ok(name)
}

/// A template is some hundred megabytes; only the latest are likely to be wanted again.
fn remove_old(templates: &Path) {
    let mut known: Vec<_> = fs::read_dir(templates)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    known.sort();
    for (_, path) in known.iter().rev().skip(TEMPLATES_KEPT) {
        let _ = fs::remove_dir_all(path);
    }
}
