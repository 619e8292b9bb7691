//! Maintenance: guests move by themselves, and nobody who uses them notices.

use std::collections::BTreeMap;
use std::time::Duration;

use lab::scenario::Outcome;
use lab::{Host, Lab, eventually, eventually_within};
use serde_json::Value;

use crate::cluster::Cluster;

/// Everything that these scenarios wait for happens within this on a machine that is busy.
const LIMIT: Duration = Duration::from_mins(4);
/// Where the guest that serves a connection answers.
const ADDRESS: &str = "10.0.0.120";
/// Lines that its reader sees before and after the move.
const LINES: usize = 15;

/// Where each guest runs, as `from` sees it.
fn places(from: &Host) -> Option<BTreeMap<String, String>> {
    let view = Cluster::view(from)?;
    let place = |guest: &Value| {
        let at = guest["host"].as_str()?.to_owned();
        Some((guest["name"].as_str()?.to_owned(), at))
    };
    view["guests"].as_array()?.iter().map(place).collect()
}

/// A host is emptied while somebody reads from its guest: the connection stays, and no line of it
/// is lost. New guests stay away until the host is back.
pub fn drs_maintenance_empties_a_host_and_no_connection_breaks(lab: &Lab) -> Outcome {
    let cluster = Cluster::start(lab.hosts())?;
    let leader = cluster.all_well()?;
    let cmdline = crate::web::cmdline("web1", ADDRESS);
    leader.run_within(
        LIMIT,
        &format!("godwit create web1 --image busybox --memory 256M --cmdline '{cmdline}'"),
    )?;
    crate::web::Page::await_one(leader, ADDRESS, |_| true)?;
    let at = places(leader).ok_or("the cluster says nothing")?["web1"].clone();
    let reader = lab
        .hosts()
        .iter()
        .find(|host| host.name != at)
        .ok_or("one host only")?;
    reader.run("rm -f /var/log/stream.log")?;
    let group = reader.spawn(
        "stream",
        &format!("exec wget -q -O - http://{ADDRESS}/cgi-bin/stream"),
    )?;
    let lines = || -> Option<Vec<u64>> {
        let text = reader.run("cat /var/log/stream.log").ok()?;
        let numbers = text.lines().map(|line| line.split(' ').next());
        numbers.map(|word| word?.parse().ok()).collect()
    };
    let seen = |least: usize| move || lines().filter(|lines| lines.len() >= least).map(|_| ());
    eventually_within(LIMIT, "the first lines", seen(LINES))?;
    let said = leader.run_within(LIMIT, &format!("godwit host maintenance {at} --force"))?;
    assert!(said.contains("is empty after"), "{said}");
    let now = places(leader).ok_or("the cluster says nothing")?["web1"].clone();
    assert_ne!(now, at, "{said}");
    let so_far = lines().unwrap_or_default().len();
    eventually_within(LIMIT, "lines from the other host", seen(so_far + LINES))?;
    let numbers = lines().ok_or("the lines are damaged")?;
    assert!(
        numbers.iter().copied().eq(1..=numbers.len() as u64),
        "{numbers:?}"
    );
    let back = leader.run(&format!("godwit migrate web1 {at} 2>&1; echo code=$?"))?;
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
    // Its reader may have seen the end of it.
    reader.run(&format!("kill -9 -{group}; true"))?;
    Ok(())
}
