//! A cluster in the lab: agents on hosts, one datastore, and what its operator's command says.

use lab::host::DATASTORE;
use lab::scenario::Outcome;
use lab::{Cable, Direction, Host, Lab, eventually};
use serde_json::Value;

/// Agents that run on some hosts. When this value is dropped they and their guests are killed,
/// and the datastore is emptied.
pub struct Cluster<'lab> {
    hosts: Vec<&'lab Host>,
}

impl<'lab> Cluster<'lab> {
    /// Starts an agent on each host.
    pub fn start(hosts: impl IntoIterator<Item = &'lab Host>) -> lab::Result<Self> {
        let cluster = Self {
            hosts: hosts.into_iter().collect(),
        };
        for host in &cluster.hosts {
            start_agent(host)?;
        }
        Ok(cluster)
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
