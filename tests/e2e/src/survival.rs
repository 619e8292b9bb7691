//! What guests live through when hosts, cables, agents or the storage fail: each story ends with a
//! [`Witness`] who finds everything that the guest ever called safe on its disk.

use std::time::Instant;

use lab::host::DATASTORE;
use lab::scenario::Outcome;
use lab::{Cable, Direction, Host, Lab, eventually};

use crate::cluster::{self, Cluster};
use crate::web::Page;
use crate::witness::Witness;

const GUEST: &str = "web1";
const ADDRESS: &str = "10.0.0.130";
/// A heartbeat that stands still for so long is that of a host whose leases have run out.
const LONGER_THAN_A_LEASE_MS: u64 = 4000;
/// A second guest, without a disk.
const COMPANION: &str = "web2";
const COMPANION_ADDRESS: &str = "10.0.0.131";
/// Where an upgraded agent lies.
const UPGRADE: &str = "/tmp/upgrade";

/// A cluster whose guest runs on the host that leads, because it was there before the others; the
/// witness is at the last host.
struct Stage<'lab> {
    cluster: Cluster<'lab>,
    home: &'lab Host,
    others: Vec<&'lab Host>,
    witness: Witness<'lab>,
    before: Page,
}

impl<'lab> Stage<'lab> {
    fn set(hosts: &'lab [Host]) -> lab::Result<Self> {
        let [home, others @ .., _] = hosts else {
            return Err("two hosts are needed".into());
        };
        let others: Vec<&Host> = others.iter().chain(hosts.last()).collect();
        let mut cluster = Cluster::start([home])?;
        cluster.all_well()?;
        let before = Cluster::create(home, GUEST, "debian", ADDRESS, "256M")?;
        for host in &others {
            cluster.join(host)?;
        }
        cluster.all_well()?;
        let witness = Witness::begin(others[others.len() - 1], GUEST, ADDRESS)?;
        witness.sees_it_count()?;
        Ok(Self {
            cluster,
            home,
            others,
            witness,
            before,
        })
    }

    /// The guest's host loses its power: how long until its VMM is started elsewhere, and until
    /// it answers there?
    fn home_dies(&self) -> lab::Result<()> {
        let cut = Instant::now();
        self.home.power_off()?;
        eventually("a VMM elsewhere", || {
            self.others
                .iter()
                .any(|other| runs_a_vmm(other))
                .then_some(())
        })?;
        let begun_s = cut.elapsed().as_secs_f64();
        Page::await_one(self.witness_host(), ADDRESS, |page| {
            page.boot != self.before.boot
        })?;
        let answered_s = cut.elapsed().as_secs_f64();
        println!(
            "        power cut to restart begun {begun_s:.1} s, to the first answer over HTTP \
             {answered_s:.1} s"
        );
        self.restarted_elsewhere()
    }

    /// Waits for the guest's first answer after a new boot, on another host than before.
    fn restarted_elsewhere(&self) -> lab::Result<()> {
        let from = self.witness_host();
        Page::await_one(from, ADDRESS, |page| page.boot != self.before.boot)?;
        let now = eventually("the cluster knowing where the guest is", || {
            self.cluster.host_of(from, GUEST)
        })?;
        assert_ne!(now.name, self.home.name, "it is where it was");
        self.witness.sees_it_count()?;
        self.witness.finds_every_number()
    }

    /// The guest runs on where it was: no host has restarted it.
    fn never_restarted(&self) -> lab::Result<()> {
        let page = self.witness.sees_it_count()?;
        assert_eq!(page.boot, self.before.boot, "the guest was restarted");
        for other in &self.others {
            assert!(!runs_a_vmm(other), "host {} started one too", other.name);
        }
        self.witness.finds_every_number()
    }

    /// The guest's host loses its storage cable until its leases have run out, and gets it back
    /// before anybody takes over: certainly, because who could stands still meanwhile.
    fn storage_is_back_in_time(&self) -> lab::Result<()> {
        let from = self.witness_host();
        for other in &self.others {
            other.run("killall -STOP cluster-agent")?;
        }
        self.home.cut(Cable::Storage, Direction::Both);
        let silent = format!(
            "godwit-store -d {DATASTORE} status --watch-ms {LONGER_THAN_A_LEASE_MS} | \
             grep -q 'host  *{} .*SILENT'",
            self.home.name
        );
        eventually("its heartbeat standing still", || from.run(&silent).ok())?;
        self.home.heal(Cable::Storage, Direction::Both);
        let renewed =
            format!("godwit-store -d {DATASTORE} lease show {GUEST} | tail -n 1 | grep Renewed");
        eventually("its coming back by a new epoch", || from.run(&renewed).ok())?;
        // After an outage a network file system catches up in fits and starts. Whoever looks then may
        // rightly find a heartbeat that stands still, and this story is not about that.
        let steady = format!(
            "for _ in 1 2 3 4 5; do godwit-store -d {DATASTORE} status --watch-ms 1000 | \
             grep -q 'host  *{} .*beats' || exit 1; done",
            self.home.name
        );
        eventually("its heartbeat being steady", || from.run(&steady).ok())?;
        for other in &self.others {
            other.run("killall -CONT cluster-agent")?;
        }
        Ok(())
    }

    /// The copy on a host that could act no more ends when it sees the lease again.
    fn old_copy_ends(&self) -> lab::Result<()> {
        eventually("the old copy ending", || {
            (!runs_a_vmm(self.home)).then_some(())
        })?;
        self.cluster.all_well()?;
        Ok(())
    }

    fn witness_host(&self) -> &'lab Host {
        self.others[self.others.len() - 1]
    }
}

fn runs_a_vmm(host: &Host) -> bool {
    host.run("pidof vmm").is_ok()
}

/// The leader dies together with the guest it runs; its host boots again and rejoins.
pub fn survival_the_leader_dies_with_its_guest_and_comes_back(lab: &Lab) -> Outcome {
    let stage = Stage::set(lab.hosts())?;
    stage.home_dies()?;
    stage.home.power_on()?;
    stage.home.mount_datastore()?;
    cluster::start_agent(stage.home)?;
    stage.cluster.all_well()?;
    assert!(!runs_a_vmm(stage.home), "it took up what it had lost");
    Ok(())
}

/// Two of three hosts lose power at once; the third brings back the guests of both.
pub fn survival_the_last_host_of_three_brings_everything_back(lab: &Lab) -> Outcome {
    let stage = Stage::set(lab.hosts())?;
    let last = stage.witness_host();
    Cluster::create(last, COMPANION, "busybox", COMPANION_ADDRESS, "128M")?;
    let victims = || lab.hosts().iter().filter(|host| host.name != last.name);
    let companion = stage.cluster.host_of(last, COMPANION);
    if companion.is_none_or(|host| host.name == last.name) {
        last.run(&format!(
            "godwit migrate {COMPANION} {}",
            stage.others[0].name
        ))?;
    }
    let before = Page::await_one(last, COMPANION_ADDRESS, |_| true)?;
    for victim in victims() {
        victim.power_off()?;
    }
    stage.restarted_elsewhere()?;
    Page::await_one(last, COMPANION_ADDRESS, |page| page.boot != before.boot)?;
    Ok(())
}

/// Two hosts and nobody else: the one that is left leads and restarts.
pub fn survival_two_hosts_need_no_third(lab: &Lab) -> Outcome {
    let stage = Stage::set(&lab.hosts()[..2])?;
    stage.home_dies().map_err(Into::into)
}

/// A host stands still for longer than its leases last. When it wakes, its guest runs elsewhere,
/// and its own copy ends before it writes a byte.
pub fn survival_a_thawed_host_gives_up_its_guest(lab: &Lab) -> Outcome {
    let stage = Stage::set(lab.hosts())?;
    stage.home.freeze()?;
    let from = stage.witness_host();
    Page::await_one(from, ADDRESS, |page| page.boot != stage.before.boot)?;
    stage.home.thaw()?;
    stage.old_copy_ends()?;
    Ok(stage.restarted_elsewhere()?)
}

/// What is no reason to restart a guest restarts none: a cut management cable, a power cut of the
/// storage, a storage cable that is back before anybody takes over, a clock that is set back, a
/// killed agent and its successor, an upgrade of that.
pub fn survival_what_spares_the_guest_restarts_nothing(lab: &Lab) -> Outcome {
    let stage = Stage::set(lab.hosts())?;
    let vmm = stage.home.run("pidof vmm")?;

    stage.home.cut(Cable::Management, Direction::Both);
    let from = stage.witness_host();
    Cluster::sees(from, stage.home, "isolated")?;
    let alone = Page::await_one(stage.home, ADDRESS, |_| true)?;
    Page::await_one(stage.home, ADDRESS, |page| page.counter > alone.counter)?;
    stage.home.heal(Cable::Management, Direction::Both);
    stage.cluster.all_well()?;
    stage.never_restarted()?;

    lab.storage().restart()?;
    stage.never_restarted()?;
    stage.cluster.all_well()?;

    stage.storage_is_back_in_time()?;
    stage.never_restarted()?;
    stage.cluster.all_well()?;

    stage.home.run("date -s @$(($(date +%s) - 3600))")?;
    stage.never_restarted()?;
    stage.home.run("date -s @$(($(date +%s) + 3600))")?;
    stage.cluster.all_well()?;

    stage.home.run("killall -9 cluster-agent")?;
    // Longer than any watch of its heartbeat: twice the answers that take three seconds each.
    for _ in 0..3 {
        stage.witness.sees_it_count()?;
    }
    cluster::start_agent(stage.home)?;
    stage.cluster.all_well()?;
    upgrade_agent(stage.home)?;
    stage.cluster.all_well()?;
    stage.never_restarted()?;
    assert_eq!(stage.home.run("pidof vmm")?, vmm, "it is another process");
    stage.home.run(&format!("godwit stop {GUEST} --grace 0"))?;
    eventually("the new agent stopping the guest", || {
        (!runs_a_vmm(stage.home)).then_some(())
    })?;
    Ok(())
}

/// Tells the agent to end and starts another file in its place.
fn upgrade_agent(host: &Host) -> lab::Result<()> {
    host.run(&format!(
        "mkdir -p {UPGRADE} && cp /opt/godwit/cluster-agent {UPGRADE} && killall cluster-agent"
    ))?;
    eventually("the old agent ending", || {
        host.run("pidof cluster-agent").is_err().then_some(())
    })?;
    let line = format!("{UPGRADE}/cluster-agent --datastore {DATASTORE}");
    host.spawn("cluster-agent", &line).map(drop)
}

/// A host without its management cable gives its guest away if it was told to: it presses the
/// power button, or switches off. Its copy has ended before the guest answers from elsewhere.
pub fn survival_an_isolated_host_responds_as_it_was_told(lab: &Lab) -> Outcome {
    let cluster = Cluster::start(lab.hosts())?;
    let first = cluster.all_well()?;
    let mut page = Cluster::create(first, COMPANION, "busybox", COMPANION_ADDRESS, "128M")?;
    for response in ["shut-down", "power-off"] {
        let home = eventually("the cluster knowing where the guest is", || {
            cluster.host_of(first, COMPANION)
        })?;
        let mut others = lab.hosts().iter().filter(|host| host.name != home.name);
        let other = others.next().ok_or("one host only")?;
        other.run(&format!(
            "godwit config set --isolation-response {response}"
        ))?;
        home.cut(Cable::Management, Direction::Both);
        page = Page::await_one(other, COMPANION_ADDRESS, |new| new.boot != page.boot)?;
        assert!(!runs_a_vmm(home), "{} runs its copy, too", home.name);
        home.heal(Cable::Management, Direction::Both);
        cluster.all_well()?;
    }
    Ok(())
}

/// A host loses its storage cable for longer than its leases last: its guest runs elsewhere, and
/// the copy that was left answers, and ends when it sees the lease again.
pub fn survival_a_host_without_storage_gives_up_its_guest(lab: &Lab) -> Outcome {
    let stage = Stage::set(lab.hosts())?;
    stage.home.cut(Cable::Storage, Direction::Both);
    let from = stage.witness_host();
    Page::await_one(from, ADDRESS, |page| page.boot != stage.before.boot)?;
    // What it was writing may wait for ever; whoever asks about it does not.
    for ask in ["info", "counters"] {
        let socket = format!("/run/godwit/guests/{GUEST}/api.sock");
        let line = format!("timeout 20 vmm ctl --api-socket {socket} {ask}");
        let said = stage.home.run(&line)?;
        assert!(ask != "info" || said.contains("paused"), "{said}");
    }
    stage.home.heal(Cable::Storage, Direction::Both);
    stage.old_copy_ends()?;
    Ok(stage.restarted_elsewhere()?)
}
