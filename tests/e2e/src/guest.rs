//! A guest that one `vmm run` runs on a host of the lab, with its console in the test's hands.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use lab::agent::{Event, Running};
use lab::host::DATASTORE;
use lab::{Host, LabError, PATIENCE, Result, eventually_within};

/// What saves seconds of boot under emulation; see `image.toml` of the images.
const CMDLINE: &str = "console=ttyS0 panic=1 quiet mitigations=off nokaslr tsc=reliable no_timer_check \
    random.trust_cpu=on cryptomgr.notests selinux=0 apparmor=0 audit=0 rcupdate.rcu_expedited=1 net.ifnames=0";
/// A kernel that boots two emulations deep, on a machine that builds meanwhile.
const BOOT_LIMIT: Duration = Duration::from_secs(3 * PATIENCE.as_secs());
/// How much of its console an error shows.
const SHOWN_BYTES: usize = 2000;
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
            datastore: None,
        }
    }
}

/// A running guest; dies with this value.
pub struct Guest<'lab> {
    host: &'lab Host,
    wish: Wish,
    vmm: Running,
    console: RefCell<String>,
    /// How much of the console [`Guest::expect`] has passed.
    passed: Cell<usize>,
    code: Cell<Option<i32>>,
    commands: Cell<u32>,
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
            ..
        } = wish;
        let tap = format!("tap{number}");
        make_room(host, &wish)?;
        let lease = lease_flags(host, &wish);
        let files = format!("{DATASTORE}/images/{image}");
        let root = if image == "debian" {
            "root=/dev/vda"
        } else {
            ""
        };
        let settings = wish.disks.iter();
        let disks: String = settings.flat_map(|disk| [" --disk ", disk]).collect();
        let pages = if hugepages { "--hugepages" } else { "" };
        let line = format!(
            "exec /opt/godwit/vmm run --name {name} --kernel {files}/{kernel} --initramfs {files}/initramfs.cpio \
             --cpus {cpus} --memory {memory_mib} {pages} --net tap={tap},mac=52:54:00:00:00:{number:02x} \
             --cmdline '{CMDLINE} ip=10.0.0.{number}:::255.255.255.0:{name}:eth0:off {root}' \
             --api-socket /run/{name}/api{disks}{lease}"
        );
        Ok(Self {
            vmm: host.start_command(&["su", "-s", "/bin/sh", "-c", &line, user])?,
            host,
            wish,
            console: RefCell::default(),
            passed: Cell::new(0),
            code: Cell::new(None),
            commands: Cell::new(0),
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
        (self.host, self.vmm) = (host, vmm);
        self.code.set(None);
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
            self.look(Instant::now() + LOOK);
            match self.code.get() {
                Some(code) => Some(Err(self.ended_too_early(code))),
                None => self.page(from).map(Ok),
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

    /// Waits for `text` on the console, after all that was waited for before; gives what
    /// stood before it.
    pub fn expect(&self, text: &str) -> Result<String> {
        let deadline = Instant::now() + BOOT_LIMIT;
        loop {
            let found = self.console.borrow()[self.passed.get()..].find(text);
            if let Some(at) = found {
                let from = self.passed.get();
                self.passed.set(from + at + text.len());
                return Ok(self.console.borrow()[from..from + at].to_owned());
            }
            if let Some(code) = self.code.get() {
                return Err(self.ended_too_early(code));
            }
            if !self.look(deadline) {
                return Err(LabError::TooLate {
                    what: format!("{text:?} on the console, which ends {:?}", self.tail()),
                    limit: BOOT_LIMIT,
                });
            }
        }
    }

    /// Types a line.
    pub fn send(&self, line: &str) -> Result<()> {
        let input = self.vmm.input();
        input.write(format!("{line}\n").as_bytes(), PATIENCE)
    }

    /// Logs in where the guest asks for it.
    pub fn log_in(&self) -> Result<()> {
        if self.wish.image == "debian" {
            self.expect("login: ")?;
            self.send("root")?;
            self.expect("# ")?;
            // Without the login shell's editing of lines and without prompts, which would get
            // between what is said.
            self.send("exec sh")?;
            self.expect("# ")?;
            return self.run("PS1=").map(drop);
        }
        self.expect("# ").map(drop)
    }

    /// Runs a shell line that must succeed on the console; gives what it printed.
    pub fn run(&self, line: &str) -> Result<String> {
        let number = self.commands.replace(self.commands.get() + 1);
        // The quotes keep the echo of the line from looking like its end.
        self.send(&format!("{line}; echo \"en\"\"d{number}=$?.\""))?;
        let said = self.expect(&format!("end{number}="))?;
        let code = self.expect(".")?;
        // The echo of the line itself comes first.
        let said = said.split_once("$?.\"").map_or("", |(_, rest)| rest).trim();
        if code != "0" {
            return Err(format!("`{line}` in the guest ended with {code}: {said}").into());
        }
        Ok(said.replace('\r', ""))
    }

    /// Waits for the end of its VMM; gives the exit code.
    pub fn ends(&self) -> Result<i32> {
        let deadline = Instant::now() + BOOT_LIMIT;
        while self.code.get().is_none() && Instant::now() < deadline && self.look(deadline) {}
        self.code.get().ok_or_else(|| LabError::TooLate {
            what: format!("the end of the guest, whose console ends {:?}", self.tail()),
            limit: BOOT_LIMIT,
        })
    }

    /// Kills its VMM, as a crash would end it.
    pub fn kill(&self) -> Result<()> {
        self.vmm.input().kill();
        self.ends().map(drop)
    }

    /// Takes what the VMM has to tell, waiting for it until `deadline`; says whether there was
    /// something.
    fn look(&self, deadline: Instant) -> bool {
        match self.vmm.next(deadline) {
            Some(Event::Output(bytes) | Event::Error(bytes)) => {
                let text = String::from_utf8_lossy(&bytes);
                self.console.borrow_mut().push_str(&text);
            }
            Some(Event::Ended(ended)) => self.code.set(Some(ended.code())),
            None => return false,
        }
        true
    }

    fn tail(&self) -> String {
        let console = self.console.borrow();
        let mut from = console.len().saturating_sub(SHOWN_BYTES);
        while !console.is_char_boundary(from) {
            from += 1;
        }
        console[from..].to_owned()
    }

    fn clean_up(&self) {
        let _ = self.host.run(&format!(
            "tunctl -d tap{} >/dev/null; rm -rf /run/{}",
            self.wish.number, self.wish.name
        ));
    }

    fn ended_too_early(&self, code: i32) -> LabError {
        format!("vmm ended with {code}: {}", self.tail()).into()
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
