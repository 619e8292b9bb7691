//! The main job, shown to a newcomer: a cluster of three hosts runs a Debian guest from shared
//! storage, migrates it live, keeps it where a rule wants it, empties a host for maintenance and
//! brings the guest back after its host loses power. Every figure is measured on the way.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use e2e::cluster::Cluster;
use e2e::web::{self, Page};
use lab::artefacts::catalogue;
use lab::{Host, Lab, Settings, eventually, eventually_within};

const GUEST: &str = "web1";
const COMPANION: &str = "web2";
/// Where the guests answer, in the lab's private network.
const ADDRESS: &str = "10.0.0.101";
const COMPANION_ADDRESS: &str = "10.0.0.103";
/// So long, and so many lines at most, its console is looked at.
const CONSOLE_S: u32 = 5;
const CONSOLE_LINES: u32 = 12;
/// Anything here takes seconds; on a busy machine, more.
const LIMIT: Duration = Duration::from_mins(6);

fn main() -> ExitCode {
    match show() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the demo failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What was seen on the way, for the summary.
#[derive(Default)]
struct Summary {
    times: Vec<(Duration, &'static str)>,
    words: Vec<String>,
}

impl Summary {
    fn time(&mut self, began: Instant, what: &'static str) {
        self.times.push((began.elapsed(), what));
    }
}

fn show() -> lab::Result<()> {
    let mut summary = Summary::default();
    step("Making the guests' images (minutes the first time)");
    let datastore = catalogue(&["busybox", "debian"])?;

    step("Starting three emulated hosts with kernels and KVM of their own, and NFS storage");
    let began = Instant::now();
    let lab = Lab::start(&Settings {
        name: "demo".into(),
        datastore: Some(datastore),
        ..Settings::default()
    })?;
    summary.time(began, "three hosts and the storage are up");

    step("Pointing each host's agent at the datastore: cluster-agent --datastore /srv/vmstore");
    let began = Instant::now();
    let cluster = Cluster::start(lab.hosts())?;
    let any = cluster.all_well()?;
    summary.time(began, "they are one cluster, with a leader");

    let first = create(any, &mut summary)?;
    let moved = migrate(&cluster, any, &first, &mut summary)?;
    obey_a_rule(&cluster, any, &mut summary)?;
    empty_a_host(&cluster, any, &mut summary)?;
    let survivor = lose_a_host(&lab, &cluster, any, &moved, &mut summary)?;

    step("Stopping the guest by its power button: godwit stop web1");
    tell(&survivor.run_within(LIMIT, &format!("godwit stop {GUEST}"))?);
    drop(cluster);
    print(&summary);
    Ok(())
}

fn create(any: &Host, summary: &mut Summary) -> lab::Result<Page> {
    step("Making and starting a guest: godwit create web1 --image debian");
    let began = Instant::now();
    let cmdline = web::cmdline(GUEST, ADDRESS);
    let said = any.run_within(
        LIMIT,
        &format!(
            "godwit create {GUEST} --image debian --memory 256M --cmdline '{cmdline} root=/dev/vda'"
        ),
    )?;
    tell(&said);
    summary.time(began, "the guest's VMM runs");
    let page = Page::await_one(any, ADDRESS, |_| true)?;
    summary.time(began, "the guest answers HTTP, booted from NFS");
    tell(&format!("{page:?}"));
    tell(&any.run("godwit status")?);
    show_console(any)?;
    Ok(page)
}

/// Whoever comes is first shown what the guest has said so far.
fn show_console(any: &Host) -> lab::Result<()> {
    step("Showing its console: godwit console web1");
    let said = any.run(&format!(
        "timeout {CONSOLE_S} godwit console {GUEST} < /dev/null 2>/dev/null | tail -n {CONSOLE_LINES}"
    ))?;
    tell(&said.replace('\r', ""));
    Ok(())
}

fn migrate(
    cluster: &Cluster<'_>,
    any: &Host,
    before: &Page,
    summary: &mut Summary,
) -> lab::Result<Page> {
    step("Moving it to another host while it runs: godwit migrate web1");
    let from = home(cluster, any, GUEST)?.name.clone();
    let began = Instant::now();
    let said = any.run_within(LIMIT, &format!("godwit migrate {GUEST}"))?;
    tell(&said);
    summary.time(began, "live migration, from the command to its end");
    summary.words.push(said.trim().to_owned());
    let now = home(cluster, any, GUEST)?.name.clone();
    let page = Page::await_one(any, ADDRESS, |page| page.counter > before.counter)?;
    if now == from || page.boot != before.boot {
        return Err(format!("it did not move live: on {now}, {page:?} after {before:?}").into());
    }
    tell(&format!("{page:?}: the same boot of the same kernel"));
    Ok(page)
}

fn obey_a_rule(cluster: &Cluster<'_>, any: &Host, summary: &mut Summary) -> lab::Result<()> {
    step("Balancing by itself: a second guest, and a rule that keeps the two together");
    let cmdline = web::cmdline(COMPANION, COMPANION_ADDRESS);
    any.run_within(
        LIMIT,
        &format!(
            "godwit create {COMPANION} --image busybox --memory 128M --cmdline '{cmdline}' && \
             godwit drs set --automation full --round 2"
        ),
    )?;
    let together = || {
        let at = |guest| Some(cluster.host_of(any, guest)?.name.clone());
        (at(GUEST)? == at(COMPANION)?).then_some(())
    };
    if together().is_some() {
        any.run_within(LIMIT, &format!("godwit migrate {COMPANION}"))?;
    }
    let began = Instant::now();
    tell(&any.run(&format!(
        "godwit rules add together pair {GUEST} {COMPANION}"
    ))?);
    eventually_within(LIMIT, "the rule being obeyed", together)?;
    summary.time(began, "a rule is obeyed by one live migration");
    tell(&any.run("godwit drs history -n 3")?);
    tell(&any.run("godwit rules remove pair")?);
    Ok(())
}

fn empty_a_host(cluster: &Cluster<'_>, any: &Host, summary: &mut Summary) -> lab::Result<()> {
    let host = home(cluster, any, GUEST)?.name.clone();
    step(&format!(
        "Emptying host {host} for maintenance: godwit host maintenance {host}"
    ));
    let began = Instant::now();
    let said = any.run_within(LIMIT, &format!("godwit host maintenance {host} --force"))?;
    tell(&said);
    summary.time(
        began,
        "a host is empty for maintenance, its guests run elsewhere",
    );
    tell(&any.run(&format!("godwit host maintenance {host} --exit"))?);
    Ok(())
}

fn lose_a_host<'lab>(
    lab: &'lab Lab,
    cluster: &Cluster<'lab>,
    any: &Host,
    before: &Page,
    summary: &mut Summary,
) -> lab::Result<&'lab Host> {
    let victim = home(cluster, any, GUEST)?;
    let last = Page::await_one(any, ADDRESS, |page| page.counter > before.counter)?;
    step(&format!(
        "Cutting the power of host {}, which runs the guest",
        victim.name
    ));
    let mut others = lab.hosts().iter().filter(|host| host.name != victim.name);
    let survivor = others.next().ok_or("the lab has one host only")?;
    let cut = Instant::now();
    victim.power_off()?;
    eventually("the restart elsewhere", || {
        let home = cluster.host_of(survivor, GUEST)?;
        (home.name != victim.name).then_some(())
    })?;
    summary.time(cut, "power cut to restart begun elsewhere");
    let page = Page::await_one(survivor, ADDRESS, |page| page.boot != last.boot)?;
    summary.time(cut, "power cut to the guest's first answer");
    tell(&format!("{page:?}"));
    if page.counter < last.counter {
        let (before, after) = (last.counter, page.counter);
        return Err(format!("the counter on its disk went back from {before} to {after}").into());
    }
    summary.words.push(format!(
        "the counter on the guest's disk: {} before the power cut, {} after it",
        last.counter, page.counter
    ));
    tell(&survivor.run("godwit status")?);
    tell(&survivor.run("godwit events -n 12")?);
    Ok(survivor)
}

/// The host that runs a guest.
fn home<'lab>(cluster: &Cluster<'lab>, from: &Host, guest: &str) -> lab::Result<&'lab Host> {
    eventually(format!("the cluster knowing where {guest} is"), || {
        cluster.host_of(from, guest)
    })
}

fn step(what: &str) {
    println!("\n== {what}");
}

fn tell(said: &str) {
    for line in said.lines() {
        println!("   {line}");
    }
}

fn print(summary: &Summary) {
    println!("\n== Summary (emulated hosts: correctness is real, times are those of emulation)");
    for (took, what) in &summary.times {
        println!("   {:>7.1} s  {what}", took.as_secs_f64());
    }
    for words in &summary.words {
        println!("   {words}");
    }
}
