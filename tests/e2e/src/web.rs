//! What a Linux guest of ours says of itself over HTTP.

use lab::{Host, PATIENCE, eventually_within};

/// What saves seconds of boot under emulation; guest-images/README.md.
const CMDLINE: &str = "console=ttyS0 quiet mitigations=off nokaslr tsc=reliable no_timer_check \
    random.trust_cpu=on cryptomgr.notests selinux=0 apparmor=0 audit=0 rcupdate.rcu_expedited=1 \
    net.ifnames=0";

/// The kernel command line of a guest that is to answer at `address` in the lab's private network.
pub fn cmdline(name: &str, address: &str) -> String {
    format!("{CMDLINE} ip={address}:::255.255.255.0:{name}:eth0:off")
}

/// One answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// The guest's name.
    pub host: String,
    /// How long its kernel has run.
    pub uptime_s: f64,
    /// The last number that is safe on its disk.
    pub counter: u64,
    /// Which boot of its kernel.
    pub boot: String,
}

impl Page {
    /// Asks the guest at `address` from a host; nothing if it does not answer.
    pub fn ask(from: &Host, address: &str) -> Option<Self> {
        Self::read(&from.http(&format!("http://{address}/")).ok()?)
    }

    /// Waits for an answer that will do. A kernel that boots two emulations deep, on a machine
    /// that is busy, takes its time.
    pub fn await_one(
        from: &Host,
        address: &str,
        will_do: impl Fn(&Self) -> bool,
    ) -> lab::Result<Self> {
        eventually_within(3 * PATIENCE, format!("an answer of {address}"), || {
            Self::ask(from, address).filter(|page| will_do(page))
        })
    }

    fn read(text: &str) -> Option<Self> {
        let value = |name: &str| {
            let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_owned());
            text.lines().find_map(value)
        };
        Some(Self {
            host: value("host")?,
            uptime_s: value("uptime")?.trim().parse().ok()?,
            counter: value("counter")?.trim().parse().ok()?,
            boot: value("boot")?,
        })
    }
}
