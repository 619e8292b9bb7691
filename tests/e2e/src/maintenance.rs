//! A host is emptied for maintenance. Nobody who uses its guests notices.

use std::time::Duration;

use lab::host::DATASTORE;
use lab::scenario::Outcome;
use lab::{Host, Lab, eventually, eventually_within};
use serde_json::Value;

use crate::cluster::{Cluster, places};
use crate::web::{self, Page};

/// Everything that these scenarios wait for happens within this on a machine that is busy.
const LIMIT: Duration = Duration::from_mins(4);
/// The guest that serves a connection, and where it answers.
const GUEST: &str = "web1";
const ADDRESS: &str = "10.0.0.120";
/// Lines that its reader sees before, during and after the move.
const LINES: usize = 15;
/// A guest that only has to be somewhere: the probe, at rest.
const IDLER: &str = "idler";
const IDLER_IMAGE: &str = "kernel = \"probe.elf\"\ncmdline = \"fill_mib=1\"\n";

/// Somebody who reads numbered lines from the guest over one connection.
struct Reader<'lab> {
    host: &'lab Host,
    group: u32,
}

impl<'lab> Reader<'lab> {
    fn begin(host: &'lab Host) -> lab::Result<Self> {
        host.run("rm -f /var/log/stream.log")?;
        let stream = format!("exec wget -q -O - http://{ADDRESS}/cgi-bin/stream");
        let group = host.spawn("stream", &stream)?;
        let reader = Self { host, group };
        reader.goes_on()?;
        Ok(reader)
    }

    fn lines(&self) -> Option<Vec<u64>> {
        let text = self.host.run("cat /var/log/stream.log").ok()?;
        let numbers = text.lines().map(|line| line.split(' ').next());
        numbers.map(|word| word?.parse().ok()).collect()
    }

    /// Waits for more lines; none was lost so far.
    fn goes_on(&self) -> lab::Result<()> {
        let so_far = self.lines().unwrap_or_default().len();
        let numbers = eventually_within(LIMIT, "more lines from the guest", || {
            self.lines().filter(|lines| lines.len() >= so_far + LINES)
        })?;
        let complete = numbers.iter().copied().eq(1..=numbers.len() as u64);
        assert!(complete, "{numbers:?}");
        Ok(())
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        // It may have seen the end of it.
        let _ = self.host.run(&format!("kill -9 -{}; true", self.group));
    }
}

/// A host is emptied while somebody reads from its guest: the connection stays, and no line of it
/// is lost. New guests stay away until the host is back.
pub fn maintenance_empties_a_host_and_no_connection_breaks(lab: &Lab) -> Outcome {
    let cluster = Cluster::start(lab.hosts())?;
    let leader = cluster.all_well()?;
    Cluster::create(leader, GUEST, "busybox", ADDRESS, "256M")?;
    let at = places(leader).ok_or("the cluster says nothing")?[GUEST].clone();
    let mut others = lab.hosts().iter().filter(|host| host.name != at);
    let reader = Reader::begin(others.next().ok_or("one host only")?)?;
    let said = leader.run_within(LIMIT, &format!("godwit host maintenance {at} --force"))?;
    assert!(said.contains("is empty after"), "{said}");
    let now = places(leader).ok_or("the cluster says nothing")?[GUEST].clone();
    assert_ne!(now, at, "{said}");
    reader.goes_on()?;
    let back = leader.run(&format!("godwit migrate {GUEST} {at} 2>&1; echo code=$?"))?;
    assert!(back.contains("code=1"), "{back}");
    leader.run(&format!("godwit host maintenance {at} --exit"))?;
    eventually("the host being in service", || {
        let view = Cluster::view(leader)?;
        let hosts = view["hosts"].as_array()?;
        let host = hosts.iter().find(|host| host["name"] == at.as_str())?;
        (host["health"] == "alive").then_some(())
    })?;
    let plan = leader.run("godwit cluster upgrade-plan")?;
    assert!(plan.contains("can be taken down"), "{plan}");
    Ok(())
}

/// The leader loses its power while another host is being emptied, one guest at a time: the first
/// is on its way, the second has not begun. The new leader carries on, and a connection to the first
/// guest neither breaks nor loses a line.
pub fn maintenance_goes_on_when_the_leader_dies_in_the_middle(lab: &Lab) -> Outcome {
    let cluster = Cluster::start(lab.hosts())?;
    let leader = cluster.all_well()?;
    let mut others = lab.hosts().iter().filter(|host| host.name != leader.name);
    let (emptied, third) = others.next().zip(others.next()).ok_or("three hosts")?;
    two_guests_on(emptied, leader)?;
    let reader = Reader::begin(third)?;

    leader.run("godwit drs set --at-once-per-host 1")?;
    // What would be on its way to the leader would die with it.
    leader.run(&format!("godwit rules group leads {}", leader.name))?;
    leader.run(&format!("godwit rules add off away leads {GUEST}"))?;
    let empty = format!("godwit host maintenance {} --force", emptied.name);
    leader.run(&format!("{empty} --no-wait"))?;
    eventually("the first guest being on its way", || {
        let said = leader.run("godwit drs recommendations --json").ok()?;
        let drs: Value = serde_json::from_str(&said).ok()?;
        (drs["under-way"][0]["moves"][0]["guest"] == GUEST).then_some(())
    })?;
    leader.power_off()?;
    let next = eventually("another host leading", || {
        cluster
            .leader(third)
            .filter(|next| next.name != leader.name)
    })?;
    eventually_within(LIMIT, "the host being empty", || {
        let at = places(next)?;
        let there = [GUEST, IDLER].map(|guest| at.get(guest) == Some(&third.name));
        (there == [true, true]).then_some(())
    })?;
    Cluster::sees(next, emptied, "in maintenance")?;
    let second = format!("{IDLER} from {}", emptied.name);
    assert_eq!(begun_by(next, &second)?, next.name, "who began the second");
    reader.goes_on()?;
    next.run(&format!("rm -rf {DATASTORE}/images/{IDLER}"))?;
    Ok(())
}

/// The host that led when the move was begun of which the history has these words.
fn begun_by(from: &Host, words: &str) -> lab::Result<String> {
    let said = from.run("godwit drs history --json")?;
    let history: Value = serde_json::from_str(&said).map_err(|error| error.to_string())?;
    let of_it = |event: &&Value| {
        let detail = event["detail"].as_str().unwrap_or_default();
        detail.starts_with("carries out") && detail.contains(words)
    };
    let event = history.as_array().and_then(|all| all.iter().find(of_it));
    let by = event.and_then(|event| Some(event["host"].as_str()?.to_owned()));
    Ok(by.ok_or_else(|| format!("the history has no beginning of {words}: {said}"))?)
}

/// The guest that is read from and another one, both on `host`.
fn two_guests_on(host: &Host, leader: &Host) -> lab::Result<()> {
    let image = format!("{DATASTORE}/images/{IDLER}");
    host.run(&format!("mkdir -p {image}"))?;
    host.push(&format!("{image}/probe.elf"), probe::IMAGE)?;
    host.push(&format!("{image}/image.toml"), IDLER_IMAGE.as_bytes())?;
    let cmdline = web::cmdline(GUEST, ADDRESS);
    for made in [
        format!("{GUEST} --image busybox --memory 128M --cmdline '{cmdline}'"),
        format!("{IDLER} --image {IDLER} --memory 64M"),
    ] {
        leader.run(&format!("godwit create {made} --no-start"))?;
    }
    for guest in [GUEST, IDLER] {
        leader.run_within(LIMIT, &format!("godwit start {guest} --on {}", host.name))?;
    }
    Page::await_one(leader, ADDRESS, |_| true)?;
    Ok(())
}
