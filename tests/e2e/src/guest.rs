//! A guest that one `vmm run` runs on a host of the lab, with its console in the test's hands.

use std::time::{Duration, Instant};

use lab::agent::{Event, Running};
use lab::host::DATASTORE;
use lab::shell::Shell;
use lab::{Host, PATIENCE, Result, eventually_within};

/// What saves seconds of boot under emulation; see `image.toml` of the images.
const CMDLINE: &str = "console=ttyS0 panic=1 quiet mitigations=off nokaslr tsc=reliable no_timer_check \
    random.trust_cpu=on cryptomgr.notests selinux=0 apparmor=0 audit=0 rcupdate.rcu_expedited=1 net.ifnames=0";
/// A kernel that boots two emulations deep, on a machine that builds meanwhile.
const BOOT_LIMIT: Duration = Duration::from_secs(3 * PATIENCE.as_secs());
/// The image of Debian as Debian has it.
pub const STOCK: &str = "stock";
/// How long one look at the console takes while something else is waited for.
const LOOK: Duration = Duration::from_millis(1);

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Its name, also its host name.
    pub name: &'static str,
    /// Directory under `images/` of the datastore.
    pub image: &'static str,
    /// Which of the image's kernels: `vmlinux` or `vmlinuz`.
    pub kernel: &'static str,
    /// Processors.
    pub cpus: u32,
    /// Memory.
    pub memory_mib: u32,
    /// Last byte of its address, which is 10.0.0.NUMBER, and of its MAC address.
    pub number: u8,
    /// Settings of its disks, as `--disk` takes them.
    pub disks: Vec<String>,
    /// Who runs it.
    pub user: &'static str,
    /// Whether its memory comes from the host's pool of huge pages.
    pub hugepages: bool,
    /// Whether it asks for its name and address in its network, instead of being told.
    pub dhcp: bool,
    /// The file on its host that its console goes to; nobody can log in then.
    pub console_file: Option<&'static str>,
    /// The datastore with a guest of its name, under whose lease it runs.
    pub datastore: Option<String>,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            name: "web1",
            image: "busybox",
            kernel: "vmlinux",
            cpus: 1,
            memory_mib: 96,
            number: 100,
            disks: Vec::new(),
            user: "root",
            hugepages: false,
            dhcp: false,
            console_file: None,
            datastore: None,
        }
    }
}

/// A running guest; dies with this value.
pub struct Guest<'lab> {
    host: &'lab Host,
    wish: Wish,
    shell: Shell,
}

impl<'lab> Guest<'lab> {
    /// Starts it, with a tap in the bridge of `host`.
    pub fn start(host: &'lab Host, wish: Wish) -> Result<Self> {
        let Wish {
            name,
            image,
            kernel,
            cpus,
            memory_mib,
            number,
            user,
            hugepages,
            dhcp,
            console_file,
            ..
        } = wish;
        let tap = format!("tap{number}");
        make_room(host, &wish)?;
        let lease = lease_flags(host, &wish);
        let files = format!("{DATASTORE}/images/{image}");
        let root = match image {
            "busybox" => "",
            _ => "root=/dev/vda",
        };
        let network = if dhcp {
            String::new()
        } else {
            format!("ip=10.0.0.{number}:::255.255.255.0:{name}:eth0:off")
        };
        let console = console_file.map(|path| format!("--console file={path}"));
        let initramfs = match image {
            STOCK => "initrd.img",
            _ => "initramfs.cpio",
        };
        let settings = wish.disks.iter();
        let disks: String = settings.flat_map(|disk| [" --disk ", disk]).collect();
        let pages = if hugepages { "--hugepages" } else { "" };
        let line = format!(
            "exec /opt/godwit/vmm run --name {name} --kernel {files}/{kernel} --initramfs {files}/{initramfs} \
             --cpus {cpus} --memory {memory_mib} {pages} --net tap={tap},mac=52:54:00:00:00:{number:02x} \
             --cmdline '{CMDLINE} {network} {root}' --api-socket /run/{name}/api {}{disks}{lease}",
            console.unwrap_or_default()
        );
        let vmm = host.start_command(&["su", "-s", "/bin/sh", "-c", &line, user])?;
        Ok(Self {
            shell: Shell::new(vmm, BOOT_LIMIT),
            host,
            wish,
        })
    }

    /// A VMM on `host` that waits for this guest; gives it when it listens on `port`. `fault` is
    /// where a migration of its fails, as `GODWIT_FAIL_AT` takes it.
    pub fn awaited_on(
        &self,
        host: &Host,
        port: u16,
        tls_dir: Option<&str>,
        fault: &str,
    ) -> Result<Running> {
        let wish = &self.wish;
        make_room(host, wish)?;
        let tls = tls_dir.map(|dir| format!(" --tls-dir {dir}"));
        let vmm = host.start_command(&[
            "sh",
            "-c",
            &format!(
                "GODWIT_FAIL_AT={fault} exec /opt/godwit/vmm receive --listen {}:{port} --api-socket /run/{}/api{}{}",
                host.address,
                wish.name,
                tls.unwrap_or_default(),
                lease_flags(host, wish)
            ),
        ])?;
        let deadline = Instant::now() + PATIENCE;
        let mut said = String::new();
        while !said.contains("waiting for a guest") {
            match vmm.next(deadline) {
                Some(Event::Output(bytes) | Event::Error(bytes)) => {
                    said.push_str(&String::from_utf8_lossy(&bytes));
                }
                _ => return Err(format!("no VMM waits for the guest: {said}").into()),
            }
        }
        Ok(vmm)
    }

    /// It lives in `vmm` on `host` from now on; gives the exit code of the VMM it left.
    pub fn moved(&mut self, host: &'lab Host, vmm: Running) -> Result<i32> {
        let code = self.ends()?;
        self.clean_up();
        (self.host, self.shell) = (host, Shell::new(vmm, BOOT_LIMIT));
        Ok(code)
    }

    /// The host it is on.
    pub fn host(&self) -> &'lab Host {
        self.host
    }

    /// What its HTTP responder says now, asked from `from`.
    pub fn page(&self, from: &Host) -> Option<Page> {
        let page = from.http(&format!("http://10.0.0.{}/", self.wish.number));
        page.ok().and_then(|page| Page::read(&page))
    }

    /// Waits until it answers `from`.
    pub fn answers(&self, from: &Host) -> Result<Page> {
        eventually_within(BOOT_LIMIT, "the guest answering", || {
            self.shell.look(Instant::now() + LOOK);
            match self.shell.is_there() {
                Err(ended) => Some(Err(ended)),
                Ok(()) => self.page(from).map(Ok),
            }
        })?
    }

    /// What one verb of `vmm ctl` says.
    pub fn control(&self, verb: &str) -> Result<String> {
        let socket = format!("/run/{}/api", self.wish.name);
        self.host
            .run(&format!("vmm ctl --api-socket {socket} {verb}"))
    }

    /// A number of what `vmm ctl info` says.
    pub fn fact(&self, name: &str) -> Result<u64> {
        let info = self.told("info")?;
        let number = info[name].as_u64();
        number.ok_or_else(|| format!("no number {name:?} in {info}").into())
    }

    /// What `vmm ctl counters` says.
    pub fn counters(&self) -> Result<serde_json::Value> {
        self.told("counters")
    }

    fn told(&self, verb: &str) -> Result<serde_json::Value> {
        let told = serde_json::from_str(&self.control(verb)?);
        Ok(told.map_err(|error| error.to_string())?)
    }

    /// Logs in where the guest asks for it.
    pub fn log_in(&self) -> Result<()> {
        if self.wish.image != "busybox" {
            self.shell.expect("login: ")?;
            self.shell.send("root")?;
            self.shell.expect("# ")?;
            // Without the login shell's editing of lines and without prompts, which would get
            // between what is said.
            self.shell.send("exec sh")?;
            self.shell.expect("# ")?;
            return self.shell.run("PS1=").map(drop);
        }
        self.shell.expect("# ").map(drop)
    }

    /// Types a line on its console.
    pub fn send(&self, line: &str) -> Result<()> {
        self.shell.send(line)
    }

    /// Runs a shell line that must succeed on its console; gives what it printed.
    pub fn run(&self, line: &str) -> Result<String> {
        self.shell.run(line)
    }

    /// Waits for the end of its VMM; gives the exit code.
    pub fn ends(&self) -> Result<i32> {
        self.shell.ends()
    }

    /// Kills its VMM, as a crash would end it.
    pub fn kill(&self) -> Result<()> {
        self.shell.kill()
    }

    fn clean_up(&self) {
        let _ = self.host.run(&format!(
            "tunctl -d tap{} >/dev/null; rm -rf /run/{}",
            self.wish.number, self.wish.name
        ));
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        // A host that lost its power has nothing left to clean up.
        let _ = self.kill();
        self.clean_up();
    }
}

/// A tap in the bridge and a directory for its sockets.
fn make_room(host: &Host, wish: &Wish) -> Result<()> {
    let Wish {
        name, number, user, ..
    } = wish;
    let tap = format!("tap{number}");
    let made = host.run(&format!(
        "tunctl -t {tap} >/dev/null && brctl addif br0 {tap} && ip link set {tap} up && \
         mkdir -p /run/{name} && chown {user} /run/{name}"
    ));
    made.map(drop)
}

fn lease_flags(host: &Host, wish: &Wish) -> String {
    let Some(store) = &wish.datastore else {
        return String::new();
    };
    let (name, host) = (wish.name, &host.name);
    format!(" --datastore {store} --guest {name} --host {host}")
}

/// What a guest's HTTP responder says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its host name.
    pub host: String,
    /// The last number that its counter has synced to its disk.
    pub counter: u64,
    /// A new one each boot.
    pub boot: String,
}

impl Page {
    fn read(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_owned());
            text.lines().find_map(value)
        };
        Some(Self {
            host: field("host")?,
            counter: field("counter")?.trim().parse().unwrap_or(0),
            // A guest that shuts down has no /proc any more.
            boot: field("boot").filter(|boot| !boot.is_empty())?,
        })
    }
}
