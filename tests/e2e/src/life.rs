//! The life of guests and hosts in a cluster, as its operator leads it, from a host that does not
//! lead.

use std::time::Duration;

use lab::scenario::Outcome;
use lab::{Host, Lab, eventually};

use crate::cluster::Cluster;
use crate::web::{self, Page};

const GUEST: &str = "web1";
const ADDRESS: &str = "10.0.0.150";
const CLONE: &str = "web2";
const CLONE_ADDRESS: &str = "10.0.0.151";
/// Every act is done within this.
const ACT_LIMIT: Duration = Duration::from_mins(5);
/// A guest that is off for so long, several readings of the inventory, stays off.
const STAYS_OFF_S: u64 = 4;

fn godwit(from: &Host, words: &str) -> lab::Result<String> {
    from.run_within(ACT_LIMIT, &format!("godwit {words}"))
}

fn state(from: &Host, guest: &str) -> Option<String> {
    Some(Cluster::guest(from, guest)?["state"].as_str()?.to_owned())
}

fn becomes(from: &Host, guest: &str, wanted: &str) -> lab::Result<()> {
    eventually(format!("{guest} being {wanted}"), || {
        (state(from, guest)? == wanted).then_some(())
    })
}

/// Other boots than `before`.
fn boots_anew(from: &Host, before: &Page) -> lab::Result<Page> {
    Page::await_one(from, ADDRESS, |page| page.boot != before.boot)
}

/// Paused, rebooted, edited, its VMM killed, switched off from inside, copied, deleted.
pub fn life_of_a_guest_from_creation_to_deletion(lab: &Lab) -> Outcome {
    let cluster = Cluster::start(&lab.hosts()[..2])?;
    let leader = cluster.all_well()?;
    let others = lab.hosts()[..2].iter();
    let from = others
        .clone()
        .find(|host| host.name != leader.name)
        .ok_or("one host only")?;
    let first = Cluster::create(from, GUEST, "busybox", ADDRESS, "96M")?;

    godwit(from, "pause web1")?;
    becomes(from, GUEST, "paused")?;
    godwit(from, "resume web1")?;
    let page = Page::await_one(from, ADDRESS, |page| page.uptime_s > first.uptime_s)?;
    assert_eq!(page.boot, first.boot, "paused and resumed, it is the same");

    godwit(from, "reboot web1")?;
    let rebooted = boots_anew(from, &page)?;

    let home = cluster.host_of(from, GUEST).ok_or("no host runs it")?;
    let edited = godwit(from, "edit web1 --memory 112M --priority high")?;
    assert!(edited.contains("from its next start"), "{edited}");

    home.run("kill -9 $(cat /run/godwit/guests/web1/vmm.pid)")?;
    let revived = boots_anew(from, &rebooted)?;
    let again = eventually("the cluster seeing it run", || cluster.host_of(from, GUEST))?;
    assert_eq!(
        again.name, home.name,
        "a VMM that dies is replaced on the spot"
    );
    let events = godwit(from, "events")?;
    assert!(events.contains("its VMM died"), "{events}");

    from.run("(echo poweroff; sleep 3) | timeout 60 godwit console web1 >/dev/null 2>&1; true")?;
    becomes(from, GUEST, "stopped")?;
    std::thread::sleep(Duration::from_secs(STAYS_OFF_S));
    becomes(from, GUEST, "stopped")?;
    let starts = godwit(from, "events")?.matches("is started on").count();
    assert_eq!(starts, 1, "who switches himself off is not started again");

    let cmdline = web::cmdline(CLONE, CLONE_ADDRESS);
    godwit(from, "clone web1 web2")?;
    godwit(
        from,
        &format!("edit web2 --cmdline '{cmdline}' --depends-on web1"),
    )?;
    godwit(from, "start web1")?;
    godwit(from, "start web2")?;
    boots_anew(from, &revived)?;
    Page::await_one(from, CLONE_ADDRESS, |_| true)?;
    let memory = Cluster::guest(from, GUEST).ok_or("no such guest")?["memory_mib"].clone();
    assert_eq!(memory, 112, "what was edited holds from the next start");

    let refused = from.run("godwit delete web2 2>&1; echo code=$?")?;
    assert!(refused.contains("code=1"), "a running guest: {refused}");
    for guest in [GUEST, CLONE] {
        godwit(from, &format!("stop {guest} --grace 30"))?;
        godwit(from, &format!("delete {guest}"))?;
        eventually(format!("{guest} being off the list"), || {
            Cluster::guest(from, guest).is_none().then_some(())
        })?;
    }
    Ok(())
}

/// One host leaves, and its guest moves away without a stop; another dies, and is forgotten.
pub fn life_of_a_cluster_that_shrinks(lab: &Lab) -> Outcome {
    let cluster = Cluster::start(lab.hosts())?;
    let leader = cluster.all_well()?;
    let others: Vec<&Host> = lab
        .hosts()
        .iter()
        .filter(|host| host.name != leader.name)
        .collect();
    let [leaving, dying] = others[..] else {
        return Err("three hosts are needed".into());
    };
    let cmdline = web::cmdline(GUEST, ADDRESS);
    godwit(
        leader,
        &format!("create {GUEST} --image busybox --memory 96M --no-start --cmdline '{cmdline}'"),
    )?;
    godwit(leader, &format!("start {GUEST} --on {}", leaving.name))?;
    let before = Page::await_one(leader, ADDRESS, |_| true)?;

    godwit(leader, &format!("host leave {} --force", leaving.name))?;
    let page = Page::await_one(leader, ADDRESS, |page| page.uptime_s > before.uptime_s)?;
    assert_eq!(page.boot, before.boot, "it moved, and was not started anew");
    assert_eq!(Cluster::health(leader, leaving), None, "it is off the list");
    eventually("its agent having ended", || {
        let left = leaving.run("pidof cluster-agent vmm || echo none").ok()?;
        (left.trim() == "none").then_some(())
    })?;

    let alive = leader.run(&format!(
        "godwit host forget {} 2>&1; echo code=$?",
        dying.name
    ))?;
    assert!(alive.contains("code=1"), "a living host: {alive}");
    dying.power_off()?;
    Cluster::sees(leader, dying, "dead")?;
    Page::await_one(leader, ADDRESS, |_| true)?;
    godwit(leader, &format!("host forget {}", dying.name))?;
    eventually("the forgotten host being off the list", || {
        Cluster::health(leader, dying).is_none().then_some(())
    })?;
    eventually("the last host running the guest", || {
        let home = cluster.host_of(leader, GUEST)?;
        (home.name == leader.name).then_some(())
    })
    .map_err(Into::into)
}
