//! A cluster in the lab: agents on hosts, one datastore, and what its operator's command says.

use std::collections::BTreeMap;
use std::time::Duration;

use lab::host::DATASTORE;
use lab::scenario::Outcome;
use lab::{Cable, Direction, Host, Lab, eventually};
use serde_json::Value;

use crate::web::{self, Page};

/// A guest is made and its VMM runs within this.
const CREATE_LIMIT: Duration = Duration::from_mins(5);
/// A guest is elsewhere within this.
const MIGRATE_LIMIT: Duration = Duration::from_mins(5);
/// Where the guest of these scenarios answers.
const ADDRESS: &str = "10.0.0.102";

/// Agents that run on some hosts. When this value is dropped they and their guests are killed,
/// and the datastore is emptied.
pub struct Cluster<'lab> {
    hosts: Vec<&'lab Host>,
}

impl<'lab> Cluster<'lab> {
    /// Starts an agent on each host.
    pub fn start(hosts: impl IntoIterator<Item = &'lab Host>) -> lab::Result<Self> {
        let mut cluster = Self { hosts: Vec::new() };
        for host in hosts {
            cluster.join(host)?;
        }
        Ok(cluster)
    }

    /// Starts an agent on one more host.
    pub fn join(&mut self, host: &'lab Host) -> lab::Result<()> {
        self.hosts.push(host);
        start_agent(host)
    }

    /// What a host's agent says about the cluster; nothing if it says nothing (yet).
    pub fn view(from: &Host) -> Option<Value> {
        let said = from.run("timeout 30 godwit hosts --json").ok()?;
        serde_json::from_str(&said).ok()
    }

    /// The host that leads, as `from` sees it.
    pub fn leader(&self, from: &Host) -> Option<&'lab Host> {
        let leader = Self::view(from)?["leader"].as_str()?.to_owned();
        self.hosts.iter().copied().find(|host| host.name == leader)
    }

    /// How `from` sees `host`: alive, suspect, isolated, dead, ...
    pub fn health(from: &Host, host: &Host) -> Option<String> {
        let view = Self::view(from)?;
        let hosts = view["hosts"].as_array()?;
        let seen = hosts
            .iter()
            .find(|seen| seen["name"] == host.name.as_str())?;
        Some(seen["health"].as_str()?.to_owned())
    }

    /// A guest, as `from` sees it.
    pub fn guest(from: &Host, name: &str) -> Option<Value> {
        let view = Self::view(from)?;
        let guests = view["guests"].as_array()?;
        guests.iter().find(|guest| guest["name"] == name).cloned()
    }

    /// The host that runs a guest, as `from` sees it.
    pub fn host_of(&self, from: &Host, guest: &str) -> Option<&'lab Host> {
        let at = Self::guest(from, guest)?["host"].as_str()?.to_owned();
        self.hosts.iter().copied().find(|host| host.name == at)
    }

    /// Makes a guest of a small Linux image that answers at `address`, and waits until it does.
    pub fn create(
        from: &Host,
        name: &str,
        image: &str,
        address: &str,
        memory: &str,
    ) -> lab::Result<Page> {
        let root = if image == "debian" {
            "root=/dev/vda"
        } else {
            ""
        };
        let cmdline = web::cmdline(name, address);
        from.run_within(
            CREATE_LIMIT,
            &format!(
                "godwit create {name} --image {image} --memory {memory} \
                 --cmdline '{cmdline} {root}'"
            ),
        )?;
        Page::await_one(from, address, |_| true)
    }

    /// Waits until the cluster has a leader and it sees all hosts alive; gives the leader.
    pub fn all_well(&self) -> lab::Result<&'lab Host> {
        let first = self.hosts.first().ok_or("a cluster without hosts")?;
        eventually("all hosts being alive under one leader", || {
            let leader = self.leader(first)?;
            let alive = |host: &&&Host| Self::health(leader, host).as_deref() == Some("alive");
            (self.hosts.iter().filter(alive).count() == self.hosts.len()).then_some(leader)
        })
    }

    /// Waits until `from` sees `host` in such a state.
    pub fn sees(from: &Host, host: &Host, health: &str) -> lab::Result<()> {
        let what = format!("host {} seeing {} {health}", from.name, host.name);
        eventually(what, || {
            (Self::health(from, host).as_deref() == Some(health)).then_some(())
        })
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        for host in self.hosts.iter().filter(|host| host.is_on()) {
            // A frozen host is put right by the lab, and its power is cut there if need be.
            let _ = host.run("killall -q -9 cluster-agent vmm; rm -rf /run/godwit; true");
        }
        let keep = "! -name images ! -name .";
        if let Some(host) = self.hosts.iter().find(|host| host.is_on()) {
            let _ = host.run(&format!(
                "cd {DATASTORE} && find . -maxdepth 1 {keep} -exec rm -rf {{}} +"
            ));
        }
    }
}

/// Where each guest runs, as `from` sees it.
pub fn places(from: &Host) -> Option<BTreeMap<String, String>> {
    let view = Cluster::view(from)?;
    let place = |guest: &Value| {
        let at = guest["host"].as_str()?.to_owned();
        Some((guest["name"].as_str()?.to_owned(), at))
    };
    view["guests"].as_array()?.iter().map(place).collect()
}

/// Starts the agent of a host that has the datastore mounted.
pub fn start_agent(host: &Host) -> lab::Result<()> {
    host.spawn(
        "cluster-agent",
        &format!("cluster-agent --datastore {DATASTORE}"),
    )
    .map(drop)
}

/// Pointing each host's agent at the datastore is the whole set-up.
pub fn hosts_form_a_cluster(lab: &Lab) -> Outcome {
    let cluster = Cluster::start(lab.hosts())?;
    let leader = cluster.all_well()?;
    for host in lab.hosts() {
        let same = || (cluster.leader(host)?.name == leader.name).then_some(());
        eventually(format!("host {} seeing the same leader", host.name), same)?;
    }
    Ok(())
}

/// Another host takes the lead, tells the dead from the living, and takes the returned one in.
pub fn the_lead_moves_when_the_leader_dies(lab: &Lab) -> Outcome {
    let cluster = Cluster::start(lab.hosts())?;
    let first = cluster.all_well()?;
    let others: Vec<&Host> = lab
        .hosts()
        .iter()
        .filter(|host| host.name != first.name)
        .collect();
    first.power_off()?;
    let second = eventually("another host leading", || {
        cluster
            .leader(others[0])
            .filter(|leader| leader.name != first.name)
    })?;
    Cluster::sees(second, first, "dead")?;
    first.power_on()?;
    first.mount_datastore()?;
    start_agent(first)?;
    cluster.all_well()?;
    Ok(())
}

/// A host without its management cable, whose storage is alive, is isolated and not dead.
pub fn a_cut_off_host_is_isolated_and_not_dead(lab: &Lab) -> Outcome {
    let cluster = Cluster::start(lab.hosts())?;
    let leader = cluster.all_well()?;
    let other = lab
        .hosts()
        .iter()
        .find(|host| host.name != leader.name)
        .ok_or("one host only")?;
    other.cut(Cable::Management, Direction::Both);
    Cluster::sees(leader, other, "isolated")?;
    other.heal(Cable::Management, Direction::Both);
    Cluster::sees(leader, other, "alive")?;
    Ok(())
}

/// There and back: the same kernel answers, and what it counts on its disk goes on.
pub fn a_guest_migrates_by_one_command(lab: &Lab) -> Outcome {
    let cluster = Cluster::start(lab.hosts())?;
    let leader = cluster.all_well()?;
    let mut last = Cluster::create(leader, "web1", "debian", ADDRESS, "256M")?;
    let home = cluster
        .host_of(leader, "web1")
        .ok_or("no host runs the guest")?;
    for to in ["", &home.name] {
        let before = cluster
            .host_of(leader, "web1")
            .ok_or("no host runs the guest")?;
        let said = leader.run_within(MIGRATE_LIMIT, &format!("godwit migrate web {to}"))?;
        assert!(said.contains("blackout"), "{said}");
        eventually("the cluster seeing the guest elsewhere", || {
            (cluster.host_of(leader, "web1")?.name != before.name).then_some(())
        })?;
        let page = Page::await_one(leader, ADDRESS, |page| page.counter > last.counter)?;
        assert_eq!(page.boot, last.boot, "the guest was started anew");
        assert!(page.uptime_s > last.uptime_s, "{page:?} after {last:?}");
        last = page;
    }
    let gone = leader.run("godwit migrate web1 nowhere 2>&1; echo code=$?")?;
    assert!(
        gone.contains("there is no host nowhere") && gone.contains("code=1"),
        "{gone}"
    );
    Ok(())
}
