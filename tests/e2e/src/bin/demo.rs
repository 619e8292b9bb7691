//! The main job, shown to a newcomer: a cluster of three hosts runs a Debian guest from shared
//! storage and brings it back after its host loses power. Every figure is measured on the way.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use e2e::cluster::Cluster;
use lab::artefacts::catalogue;
use lab::{Host, Lab, Settings, eventually};
use serde_json::Value;

const GUEST: &str = "web1";
/// Where the guest answers, in the lab's private network.
const ADDRESS: &str = "10.0.0.101";
/// What saves seconds of boot under emulation; guest-images/README.md.
const CMDLINE: &str = "console=ttyS0 quiet mitigations=off nokaslr tsc=reliable no_timer_check \
    random.trust_cpu=on cryptomgr.notests selinux=0 apparmor=0 audit=0 rcupdate.rcu_expedited=1 \
    net.ifnames=0 root=/dev/vda";

fn main() -> ExitCode {
    match show() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the demo failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A figure for the summary.
struct Figure {
    what: &'static str,
    took: Duration,
}

fn show() -> lab::Result<()> {
    let mut figures = Vec::new();
    step("Making the Debian guest's image (minutes the first time)");
    let datastore = catalogue(&["debian"])?;

    step("Starting three emulated hosts with kernels and KVM of their own, and NFS storage");
    let began = Instant::now();
    let lab = Lab::start(&Settings {
        name: "demo".into(),
        datastore: Some(datastore),
        ..Settings::default()
    })?;
    figures.push(Figure {
        what: "three hosts and the storage are up",
        took: began.elapsed(),
    });

    step("Pointing each host's agent at the datastore: cluster-agent --datastore /srv/vmstore");
    let began = Instant::now();
    let cluster = Cluster::start(lab.hosts())?;
    let leader = cluster.all_well()?;
    figures.push(Figure {
        what: "they are one cluster, with a leader",
        took: began.elapsed(),
    });

    step("Making and starting a guest: godwit create web1 --image debian");
    let began = Instant::now();
    let cmdline = format!("{CMDLINE} ip={ADDRESS}:::255.255.255.0:{GUEST}:eth0:off");
    let said = leader.run_within(
        Duration::from_mins(5),
        &format!("godwit create {GUEST} --image debian --memory 256M --cmdline '{cmdline}'"),
    )?;
    tell(&said);
    figures.push(Figure {
        what: "the guest's VMM runs",
        took: began.elapsed(),
    });
    let first = page(leader, |_| true)?;
    figures.push(Figure {
        what: "the guest answers HTTP, booted from NFS",
        took: began.elapsed(),
    });
    tell(first.trim());
    tell(&leader.run("godwit status")?);

    let victim = host_of_guest(&lab, leader)?;
    let survivor = other_than(&lab, victim)?;
    step(&format!(
        "Cutting the power of host {}, which runs the guest",
        victim.name
    ));
    let cut = Instant::now();
    victim.power_off()?;
    eventually("the restart elsewhere", || {
        let host = guest(survivor)?["host"].as_str()?.to_owned();
        (host != victim.name).then_some(())
    })?;
    figures.push(Figure {
        what: "power cut to restart begun elsewhere",
        took: cut.elapsed(),
    });
    let boot = value(&first, "boot").to_owned();
    let second = page(survivor, |page| value(page, "boot") != boot)?;
    figures.push(Figure {
        what: "power cut to the guest's first answer",
        took: cut.elapsed(),
    });
    tell(second.trim());
    let (before, after) = (counter(&first), counter(&second));
    if after < before {
        return Err(format!("the counter on its disk went back from {before} to {after}").into());
    }
    tell(&survivor.run("godwit status")?);
    tell(&survivor.run("godwit events -n 12")?);

    step("Stopping the guest by its power button: godwit stop web1");
    tell(&survivor.run_within(Duration::from_mins(5), &format!("godwit stop {GUEST}"))?);
    drop(cluster);
    summary(&figures, before, after);
    Ok(())
}

fn step(what: &str) {
    println!("\n== {what}");
}

fn tell(said: &str) {
    for line in said.lines() {
        println!("   {line}");
    }
}

fn summary(figures: &[Figure], before: u64, after: u64) {
    println!("\n== Summary (emulated hosts: correctness is real, times are those of emulation)");
    for Figure { what, took } in figures {
        println!("   {:>7.1} s  {what}", took.as_secs_f64());
    }
    println!("   the counter on the guest's disk: {before} before the power cut, {after} after it");
}

/// The guest, as the agent of `from` sees it.
fn guest(from: &Host) -> Option<Value> {
    let view = Cluster::view(from)?;
    let guests = view["guests"].as_array()?;
    guests.iter().find(|guest| guest["name"] == GUEST).cloned()
}

fn host_of_guest<'lab>(lab: &'lab Lab, from: &Host) -> lab::Result<&'lab Host> {
    let guest = guest(from).ok_or("the cluster does not know the guest")?;
    lab.host(guest["host"].as_str().ok_or("no host runs the guest")?)
}

fn other_than<'lab>(lab: &'lab Lab, host: &Host) -> lab::Result<&'lab Host> {
    let other = lab.hosts().iter().find(|other| other.name != host.name);
    other.ok_or_else(|| "the lab has one host only".into())
}

/// What the guest says of itself, once it says something that will do.
fn page(from: &Host, will_do: impl Fn(&str) -> bool) -> lab::Result<String> {
    let url = format!("http://{ADDRESS}/");
    eventually("the guest's answer", || {
        from.http(&url)
            .ok()
            .filter(|page| page.contains("counter=") && will_do(page))
    })
}

fn value<'page>(page: &'page str, name: &str) -> &'page str {
    let line = |line: &'page str| line.strip_prefix(name)?.strip_prefix('=');
    page.lines().find_map(line).unwrap_or("").trim()
}

fn counter(page: &str) -> u64 {
    value(page, "counter").parse().unwrap_or(0)
}
