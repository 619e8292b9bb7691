//! Stock Linux guests on a host, by `vmm run` alone: no cluster, no lease.

use lab::host::DATASTORE;
use lab::scenario::Outcome;
use lab::{Host, Lab, PATIENCE, eventually, eventually_within};

/// Where guests of these scenarios answer.
const ADDRESS: &str = "10.0.0.100";
/// What saves seconds of boot under emulation; see `image.toml` of the images.
const CMDLINE: &str = "console=ttyS0 quiet mitigations=off nokaslr tsc=reliable no_timer_check \
    random.trust_cpu=on cryptomgr.notests selinux=0 apparmor=0 audit=0 rcupdate.rcu_expedited=1 net.ifnames=0";

/// A guest that one `vmm run` runs; killed when dropped.
struct Guest<'lab> {
    host: &'lab Host,
    name: &'static str,
}

impl<'lab> Guest<'lab> {
    /// Starts a guest of the catalogue on `host` at [`ADDRESS`].
    fn start(host: &'lab Host, image: &str, more: &str, cmdline: &str) -> lab::Result<Self> {
        let name = "web1";
        host.run("tunctl -t tap0 >/dev/null && brctl addif br0 tap0 && ip link set tap0 up")?;
        let guest = Self { host, name };
        let files = format!("{DATASTORE}/images/{image}");
        host.spawn(
            name,
            &format!(
                "vmm run --name {name} --kernel {files}/vmlinux --initramfs {files}/initramfs.cpio --memory 256 \
                 --cmdline '{CMDLINE} ip={ADDRESS}:::255.255.255.0:{name}:eth0:off {cmdline}' {more} \
                 --net tap=tap0,mac=52:54:00:00:00:01 --console file=/var/log/{name}.console.log \
                 --api-socket /run/{name}.sock; echo \"ended with $?\""
            ),
        )?;
        Ok(guest)
    }

    /// What its HTTP responder says, asked from `from`.
    fn page(from: &Host) -> Option<String> {
        from.http(&format!("http://{ADDRESS}/")).ok()
    }

    /// Waits until it answers `from`, or its VMM has ended.
    fn answers(&self, from: &Host) -> lab::Result<String> {
        // A kernel that boots two emulations deep, on a machine that builds meanwhile.
        eventually_within(3 * PATIENCE, "the guest answering", || {
            if let Some(code) = self.ended() {
                let log = self.host.run(&format!(
                    "tail -n 20 /var/log/{0}.log /var/log/{0}.console.log",
                    self.name
                ));
                return Some(Err(format!(
                    "vmm ended with {code}: {}",
                    log.unwrap_or_default()
                )
                .into()));
            }
            Self::page(from).map(Ok)
        })?
    }

    /// The exit code of its VMM, once it has ended.
    fn ended(&self) -> Option<String> {
        let line = format!("sed -n 's/^ended with //p' /var/log/{}.log", self.name);
        self.host.run(&line).ok().filter(|code| !code.is_empty())
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        // A host that lost its power has nothing left to clean up.
        let _ = self.host.run(&format!(
            "killall -q -9 vmm; tunctl -d tap0 >/dev/null; mv /var/log/{0}.log /var/log/{0}.old; true",
            self.name
        ));
    }
}

/// From an initramfs, through a tap and the bridge, to an answer on another host; the power
/// button ends it.
pub fn a_busybox_guest_boots_answers_and_powers_off(lab: &Lab) -> Outcome {
    let [a, b, ..] = lab.hosts() else {
        return Err("two hosts are needed".into());
    };
    let guest = Guest::start(a, "busybox", "", "")?;
    let page = guest.answers(b)?;
    assert!(page.contains("host=web1"), "{page}");
    a.run("vmm ctl --api-socket /run/web1.sock power-button")?;
    let code = eventually("the guest powering off", || guest.ended())?;
    assert_eq!(code, "0", "of vmm after the power button");
    Ok(())
}

/// The stock Debian guest, its disk on the datastore.
pub fn a_debian_guest_boots_from_its_disk(lab: &Lab) -> Outcome {
    let [a, b, ..] = lab.hosts() else {
        return Err("two hosts are needed".into());
    };
    let disk = format!("{DATASTORE}/debian.qcow2");
    a.run(&format!(
        "cp --reflink=always {DATASTORE}/images/debian/root.qcow2 {disk}"
    ))?;
    let guest = Guest::start(
        a,
        "debian",
        &format!("--disk path={disk},format=qcow2"),
        "root=/dev/vda",
    )?;
    let counter = |page: &str| {
        page.lines()
            .find_map(|line| line.strip_prefix("counter=")?.trim().parse::<u64>().ok())
    };
    let first = guest.answers(b)?;
    assert!(first.contains("host=web1"), "{first}");
    eventually("the counter on the guest's disk going on", || {
        (counter(&Guest::page(b)?)? > counter(&first).unwrap_or(0)).then_some(())
    })?;
    a.run("vmm ctl --api-socket /run/web1.sock power-button")?;
    eventually("the guest powering off", || guest.ended())?;
    a.run(&format!("rm {disk}"))?;
    Ok(())
}
