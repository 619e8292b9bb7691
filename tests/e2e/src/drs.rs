//! Guests move by themselves: to even out load, to obey a rule, to empty a host. Nobody who uses
//! them notices.

use std::collections::BTreeMap;
use std::time::Duration;

use lab::host::DATASTORE;
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

/// Guests that would each fill a host's processor.
const BURNERS: [&str; 3] = ["burner1", "burner2", "burner3"];
/// Their image: the probe, verifying a little memory as fast as it can.
const BURNER_IMAGE: &str = "kernel = \"probe.elf\"\n\
    cmdline = \"fill_mib=1 sweep_mib_s=max serial_ms=500\"\n";
/// For how long a console is read: on a crowded host its agent is slow, too.
const CONSOLE_S: u32 = 8;
/// For how long at least a burner's work is counted, by its own clock.
const COUNTED_MS: u64 = 5000;

/// A burner's work so far.
struct Work {
    at_ms: u64,
    verified_pages: u64,
    bad_pages: u64,
}

impl Work {
    /// Every whole line of its console, oldest first. A console ends for nobody but who leaves it.
    fn told(guest: &str, from: &Host) -> Option<Vec<Self>> {
        let console = format!("timeout {CONSOLE_S} godwit console {guest} < /dev/null; true");
        let text = from.run(&console).ok()?;
        Some(text.lines().filter_map(Self::read).collect())
    }

    /// `probe at 1500 ms: 0 pages written, 4711 verified, 0 bad, longest gap ...`
    fn read(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.strip_prefix("probe at ")?.split(' ').collect();
        let [
            "ms:",
            _,
            "pages",
            "written,",
            verified,
            "verified,",
            bad,
            "bad,",
            ..,
        ] = words[1..]
        else {
            return None;
        };
        Some(Self {
            at_ms: words[0].parse().ok()?,
            verified_pages: verified.parse().ok()?,
            bad_pages: bad.parse().ok()?,
        })
    }

    /// Pages a second that a burner verifies now.
    fn rate(guest: &str, from: &Host) -> lab::Result<f64> {
        let (first, last) = eventually(format!("{guest} at work"), || {
            let mut told = Self::told(guest, from)?;
            let last = told.pop()?;
            let long_before = |work: &Self| work.at_ms + COUNTED_MS <= last.at_ms;
            Some((told.into_iter().rfind(long_before)?, last))
        })?;
        if last.bad_pages > 0 {
            let bad = last.bad_pages;
            return Err(format!("{guest} found {bad} pages that were not what it wrote").into());
        }
        let pages = last.verified_pages - first.verified_pages;
        Ok(pages as f64 * 1000.0 / (last.at_ms - first.at_ms) as f64)
    }
}

/// What all burners do in a second.
fn work_of_all(from: &Host) -> lab::Result<f64> {
    BURNERS.iter().map(|guest| Work::rate(guest, from)).sum()
}

/// How many hosts the burners are on.
fn hosts_in_use(from: &Host) -> Option<usize> {
    let places = places(from)?;
    let hosts: std::collections::BTreeSet<_> =
        BURNERS.iter().map(|guest| places.get(*guest)).collect();
    Some(hosts.len())
}

/// Migrations that DRS has begun so far.
fn moves_so_far(from: &Host) -> lab::Result<usize> {
    let said = from.run("godwit drs history -n 1000 --json")?;
    let history: Value = serde_json::from_str(&said).map_err(|error| error.to_string())?;
    let begun = |event: &&Value| {
        let detail = event["detail"].as_str().unwrap_or_default();
        detail.starts_with("carries out")
    };
    Ok(history
        .as_array()
        .map_or(0, |all| all.iter().filter(begun).count()))
}

/// Busy guests that were all put on one host are evened out by live migrations, and do more work
/// then; a rule that keeps two of them apart costs exactly one move.
pub fn drs_evens_out_load_and_mends_a_rule_with_one_move(lab: &Lab) -> Outcome {
    let cluster = Cluster::start(lab.hosts())?;
    let leader = cluster.all_well()?;
    let image = format!("{DATASTORE}/images/burner");
    leader.run(&format!("mkdir -p {image}"))?;
    leader.push(&format!("{image}/probe.elf"), probe::IMAGE)?;
    leader.push(&format!("{image}/image.toml"), BURNER_IMAGE.as_bytes())?;

    leader.run("godwit drs set --automation partial --round 2 --hold 2 --rise 2 --fall 2")?;
    for guest in BURNERS {
        leader.run_within(
            LIMIT,
            &format!("godwit create {guest} --image burner --memory 64M"),
        )?;
        if places(leader).and_then(|places| Some(places.get(guest)? != &leader.name)) == Some(true)
        {
            leader.run_within(LIMIT, &format!("godwit migrate {guest} {}", leader.name))?;
        }
    }
    let crowded = work_of_all(leader)?;
    leader.run("godwit drs set --automation full")?;
    eventually_within(LIMIT, "a host for each busy guest", || {
        (hosts_in_use(leader)? == BURNERS.len()).then_some(())
    })?;
    let even = work_of_all(leader)?;
    println!(
        "work of all guests together: {crowded:.0} pages a second on one host, {even:.0} evened \
         out, {:.2} times as much",
        even / crowded
    );
    assert!(even > crowded, "{even} pages a second after {crowded}");

    leader.run("godwit drs set --automation manual")?;
    let [first, second, _] = BURNERS;
    let at = places(leader).ok_or("the cluster says nothing")?[first].clone();
    leader.run_within(LIMIT, &format!("godwit migrate {second} {at}"))?;
    let before = moves_so_far(leader)?;
    leader.run(&format!("godwit rules add apart pair {first} {second}"))?;
    leader.run("godwit drs set --automation full")?;
    eventually_within(LIMIT, "the rule being obeyed", || {
        (hosts_in_use(leader)? == BURNERS.len()).then_some(())
    })?;
    assert_eq!(moves_so_far(leader)? - before, 1, "moves for one rule");
    leader.run(&format!("rm -rf {image}"))?;
    Ok(())
}

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
