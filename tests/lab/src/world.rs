//! A whole lab: hosts, storage, networks.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::artefacts::{self, BuildLock};
use crate::disks::{self, FileSystem};
use crate::error::During;
use crate::host::{Host, Parts};
use crate::machine::{DATA_DISK_BYTES, Machine};
use crate::network::Switch;
use crate::process::Spawner;
use crate::template::Template;
use crate::{LabError, Result};

/// Address at which hosts reach the datastore.
pub const STORAGE_SERVER: &str = "10.1.0.250";
/// The storage host's number.
const STORAGE_NUMBER: u8 = 250;
/// Most hosts of one lab: their letters.
pub const HOSTS_LIMIT: usize = 20;

/// What a lab shall be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many hosts besides the storage host; named `a`, `b`, ...
    pub hosts: usize,
    /// RAM of each. A guest inside takes what it needs from this.
    pub memory_mib: u32,
    /// Name of the directory under `build/lab/` that keeps consoles and logs.
    pub name: String,
    /// A directory whose content the datastore has from the start.
    pub datastore: Option<PathBuf>,
    /// What the datastore lies on.
    pub file_system: FileSystem,
    /// Files that lie beside our programs in `/opt/godwit` of every host.
    pub files: Vec<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hosts: 3,
            memory_mib: 640,
            name: "lab".into(),
            datastore: None,
            file_system: FileSystem::default(),
            files: Vec::new(),
        }
    }
}

/// A running lab. All of it ends when this value is dropped.
#[derive(Debug)]
pub struct Lab {
    hosts: Vec<Host>,
    storage: Storage,
    directory: PathBuf,
    started: Started,
    _switches: [Switch; 2],
    sockets: tempfile::TempDir,
}

/// How long the parts of a start took.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// Building programs, appliance and disks.
    pub artefacts: Duration,
    /// Booting the template; nothing if there was one.
    pub template: Option<Duration>,
    /// From the first clone's start until all hosts had the datastore mounted.
    pub hosts: Duration,
}

/// The storage host: the NFSv4 server of the datastore.
#[derive(Debug)]
pub struct Storage {
    /// The machine.
    pub host: Host,
}

impl Storage {
    /// Starts serving; lease and grace time are 10 s.
    pub fn serve(&self) -> Result<()> {
        self.host.run("storage-serve /dev/vdb").map(drop)
    }

    /// Cuts the power, starts it again on the same disk and serves.
    pub fn restart(&self) -> Result<()> {
        self.host.power_off()?;
        self.host.power_on()?;
        self.serve()
    }
}

impl Lab {
    /// Makes what is missing, starts all hosts and mounts the datastore on them.
    pub fn start(settings: &Settings) -> Result<Self> {
        artefacts::check_tools()?;
        if settings.hosts > HOSTS_LIMIT {
            return Err(format!(
                "{} hosts are asked for; at most {HOSTS_LIMIT} have a name",
                settings.hosts
            )
            .into());
        }
        let begun = Instant::now();
        let directory = artefacts::build_directory()
            .join("lab")
            .join(&settings.name);
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).during("create", &directory)?;
        let spawner = Spawner::new();
        let programs = artefacts::programs()?;
        let held = BuildLock::take()?;
        let appliance = artefacts::appliance()?;
        let made = begun.elapsed();
        let template = Template::ensure(&spawner, appliance, settings.memory_mib, &held)?;
        drop(held);
        let tools = directory.join("tools.disk");
        disks::tools(&programs, &settings.files, &tools)?;
        let lab = Self::assemble(settings, directory, &spawner, &template, &tools)?;
        let mut lab = Self {
            started: Started {
                artefacts: made,
                template: template.made_in,
                hosts: Duration::ZERO,
            },
            ..lab
        };
        let cloning = Instant::now();
        lab.power_on_all()?;
        lab.started.hosts = cloning.elapsed();
        Ok(lab)
    }

    fn assemble(
        settings: &Settings,
        directory: PathBuf,
        spawner: &Spawner,
        template: &Template,
        tools: &Path,
    ) -> Result<Self> {
        let sockets = artefacts::socket_directory()?;
        let mut names: Vec<(String, u8)> = (b'a'..)
            .take(settings.hosts)
            .zip(1..)
            .map(|(letter, number)| (char::from(letter).to_string(), number))
            .collect();
        names.push(("storage".into(), STORAGE_NUMBER));
        let cable = |name: &str, card: usize| sockets.path().join(format!("{name}-net{card}"));
        let ports = |card: usize| {
            names
                .iter()
                .map(|(name, _)| cable(name, card))
                .collect::<Vec<_>>()
        };
        let switches = [Switch::start(&ports(0))?, Switch::start(&ports(1))?];
        let mut hosts = Vec::new();
        for (name, number) in &names {
            let own = directory.join(name);
            fs::create_dir_all(&own).during("create", &own)?;
            let own_sockets = sockets.path().join(name);
            fs::create_dir(&own_sockets).during("create", &own_sockets)?;
            let data_disk = own.join("data.disk");
            if *number == STORAGE_NUMBER {
                disks::storage(
                    settings.file_system,
                    settings.datastore.as_deref(),
                    &data_disk,
                )?;
            } else {
                disks::blank(&data_disk, DATA_DISK_BYTES)?;
            }
            let cables = [cable(name, 0), cable(name, 1)];
            let plugged = |card: usize| {
                switches[card]
                    .cable(&cables[card])
                    .ok_or(LabError::Other(format!("no cable for {name}")))
            };
            hosts.push(Host::new(Parts {
                name: name.clone(),
                number: *number,
                cables: [plugged(0)?, plugged(1)?],
                machine: Machine {
                    name: name.clone(),
                    kernel: template.appliance.kernel.clone(),
                    initramfs: template.appliance.initramfs.clone(),
                    lacks: None,
                    memory_mib: template.memory_mib,
                    memory: template.memory(),
                    memory_shared: false,
                    tools_disk: tools.into(),
                    data_disk,
                    sockets: own_sockets,
                    cables,
                    console_log: own.join("console.log"),
                },
                template: template.clone(),
                spawner: spawner.clone(),
                directory: own,
            }));
        }
        let storage = Storage {
            host: hosts.pop().ok_or("no storage host")?,
        };
        let started = Started {
            artefacts: Duration::ZERO,
            template: None,
            hosts: Duration::ZERO,
        };
        Ok(Self {
            hosts,
            storage,
            directory,
            started,
            _switches: switches,
            sockets,
        })
    }

    fn power_on_all(&self) -> Result<()> {
        thread::scope(|scope| {
            let storage = scope.spawn(|| {
                self.storage
                    .host
                    .power_on()
                    .and_then(|()| self.storage.serve())
            });
            let hosts: Vec<_> = self
                .hosts
                .iter()
                .map(|host| scope.spawn(|| host.power_on()))
                .collect();
            let crashed = |_| LabError::from("a thread that starts a host panicked");
            storage.join().map_err(crashed)??;
            for host in hosts {
                host.join().map_err(crashed)??;
            }
            Ok::<(), LabError>(())
        })?;
        thread::scope(|scope| {
            let mounts: Vec<_> = self
                .hosts
                .iter()
                .map(|host| scope.spawn(|| host.mount_datastore()))
                .collect();
            mounts.into_iter().try_for_each(|mount| {
                mount
                    .join()
                    .map_err(|_| LabError::from("a mounting thread panicked"))?
            })
        })
    }

    /// The hosts, in the order of their names, without the storage host.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// A host by name, the storage host too.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.all().find(|host| host.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.all().map(|host| host.name.as_str()).collect();
            format!("there is no host {name}; there are {}", known.join(", ")).into()
        })
    }

    /// All hosts, the storage host last.
    pub fn all(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().chain([&self.storage.host])
    }

    /// The storage host.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Where consoles and logs are kept.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// How long the parts of the start took.
    pub fn started(&self) -> Started {
        self.started
    }

    /// Undoes every fault: thaws, heals, powers on and mounts, so that the next scenario finds
    /// the lab as the first one did. Processes in hosts that kept their power are left alone.
    pub fn restore(&self) -> Result<()> {
        use crate::{Cable, Direction};
        for host in self.all() {
            host.heal(Cable::Management, Direction::Both);
            host.heal(Cable::Storage, Direction::Both);
            if host.is_on() {
                host.thaw()?;
                host.start_clock()?;
            }
        }
        if !self.storage.host.is_on() {
            self.storage.restart()?;
        }
        for host in &self.hosts {
            if !host.is_on() {
                host.power_on()?;
                host.mount_datastore()?;
            }
        }
        Ok(())
    }

    /// Builds our programs again and puts them over the old ones in every host that is on. What
    /// runs goes on with the old program, as after an upgrade by a package manager.
    pub fn refresh_programs(&self) -> Result<()> {
        let stage = tempfile::tempdir().during("create", "a directory for programs")?;
        let programs = artefacts::stage_programs(&artefacts::programs()?, stage.path())?;
        for host in self.all().filter(|host| host.is_on()) {
            host.run(
                "grep -q 'tmpfs /opt/godwit ' /proc/mounts || { mkdir -p /run/old && mount -o bind /opt/godwit /run/old && \
                 mount -t tmpfs tmpfs /opt/godwit && cp -a /run/old/. /opt/godwit/ && umount /run/old; }",
            )?;
            for program in &programs {
                host.push_file(
                    &stage.path().join(program),
                    &format!("{}/{program}", artefacts::PROGRAMS),
                )?;
            }
        }
        Ok(())
    }

    /// Ends all hosts now; dropping the lab does the same.
    pub fn end(&self) -> Result<()> {
        for host in self.all() {
            host.power_off()?;
        }
        let _ = fs::remove_dir_all(self.sockets.path());
        Ok(())
    }

    /// Copies the logs inside all hosts into [`Lab::directory`]; a host that does not answer is
    /// passed over.
    pub fn collect_logs(&self) {
        thread::scope(|scope| {
            for host in self.all() {
                scope.spawn(|| {
                    if let Err(error) = host.collect_logs() {
                        eprintln!("lab: no logs from host {}: {error}", host.name);
                    }
                });
            }
        });
    }
}
