//! Guests move to even out load or to obey a rule: as it is recommended, and by themselves.

use std::time::Duration;

use lab::host::DATASTORE;
use lab::scenario::Outcome;
use lab::{Host, Lab, eventually, eventually_within};
use serde_json::Value;

use crate::cluster::{Cluster, places};

/// Everything that these scenarios wait for happens within this on a machine that is busy.
const LIMIT: Duration = Duration::from_mins(4);

/// Guests that get less than this of the processor time they want are crowded.
const STARVING_PERMILLE: u64 = 800;
/// Guests that would each fill a host's processor.
const BURNERS: [&str; 3] = ["burner1", "burner2", "burner3"];
/// Their image: the probe, verifying a little memory as fast as it can.
const BURNER_IMAGE: &str = "kernel = \"probe.elf\"\n\
    cmdline = \"fill_mib=1 sweep_mib_s=max serial_ms=500\"\n";
/// A rule that they may run on any host.
const EVERYWHERE: &str = "everywhere";
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
    /// What a console told, whole lines only, oldest first.
    fn told(text: &str) -> Vec<Self> {
        text.lines().filter_map(Self::read).collect()
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

    /// Pages a second, if enough was told.
    fn rate(mut told: Vec<Self>) -> Option<f64> {
        let last = told.pop()?;
        assert_eq!(last.bad_pages, 0, "pages that are not what was written");
        let long_before = |work: &Self| work.at_ms + COUNTED_MS <= last.at_ms;
        let first = told.into_iter().rfind(long_before)?;
        let pages = last.verified_pages - first.verified_pages;
        Some(pages as f64 * 1000.0 / (last.at_ms - first.at_ms) as f64)
    }
}

/// What all burners do in a second, looked at at the same time. A console ends for nobody but who
/// leaves it.
fn work_of_all(from: &Host) -> lab::Result<f64> {
    let consoles = BURNERS.map(|guest| {
        format!("timeout {CONSOLE_S} godwit console {guest} < /dev/null > /tmp/{guest}.console &")
    });
    let listen = format!("{} wait; true", consoles.join(" "));
    eventually("all burners at work", || {
        from.run(&listen).ok()?;
        let rate = |guest: &&str| {
            let text = from.run(&format!("cat /tmp/{guest}.console")).ok()?;
            Work::rate(Work::told(&text))
        };
        BURNERS.iter().map(rate).sum()
    })
}

/// What `godwit drs` says as JSON.
fn drs(from: &Host) -> Option<Value> {
    let said = from.run("godwit drs recommendations --json").ok()?;
    serde_json::from_str(&said).ok()
}

/// How much of the processor time that guests want they get, in thousandths: what their hosts'
/// schedulers say, whatever else goes on where the hosts are emulated.
fn met_permille(from: &Host) -> Option<u64> {
    drs(from)?["round"]["before"]["satisfied-permille"].as_u64()
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

/// What DRS recommends to do for the balance: the numbers, and the guests that would move.
fn recommended(from: &Host) -> Option<Vec<(u64, String)>> {
    let drs = drs(from)?;
    let one = |one: &Value| {
        let guest = one["step"]["moves"][0]["guest"].as_str()?.to_owned();
        (one["step"]["why"]["kind"] == "balance").then_some((one["number"].as_u64()?, guest))
    };
    drs["round"]["recommendations"]
        .as_array()?
        .iter()
        .map(one)
        .collect()
}

/// What is recommended is explained, and carried out by a word of the operator's: that one move.
fn one_recommendation_is_applied(from: &Host) -> lab::Result<()> {
    // Load is measured, not set: what was recommended when it was asked may not be any more.
    let (guest, told, applied) = eventually("a recommendation that can be applied", || {
        let (number, guest) = recommended(from)?.into_iter().next()?;
        let told = from.run(&format!("godwit drs explain {number}")).ok()?;
        let applied = from.run(&format!("godwit drs apply {number}")).ok()?;
        Some((guest, told, applied))
    })?;
    for part in [
        format!("moves     {guest} from {} to ", from.name),
        "why       it evens the load".into(),
        format!("load      {}: ", from.name),
        "gain      ".into(),
        "cost      ".into(),
        "bar       at threshold ".into(),
        format!("obeys     {EVERYWHERE}"),
        "is recommended only: automation of ".into(),
    ] {
        assert!(told.contains(&part), "no {part:?} in: {told}");
    }
    assert!(applied.contains("will carry out "), "{applied}");
    eventually_within(LIMIT, "the move that was applied", || {
        (places(from)?.get(&guest)? != &from.name).then_some(())
    })?;
    eventually("the next plan leaving it at that", || {
        let said = from.run("godwit drs recommendations").ok()?;
        (!said.contains("under way")).then_some(())
    })?;
    assert_eq!(moves_so_far(from)?, 1, "moves for one that was applied");
    println!("        {}", told.lines().next().unwrap_or_default());
    Ok(())
}

/// Busy guests that were all put on one host: what would help is recommended, explained and, once
/// it is applied, done. Then they are evened out by themselves, and get more of what they want; a rule
/// that keeps two of them apart costs exactly one move.
pub fn drs_evens_out_load_and_mends_a_rule_with_one_move(lab: &Lab) -> Outcome {
    let cluster = Cluster::start(lab.hosts())?;
    let leader = cluster.all_well()?;
    let image = format!("{DATASTORE}/images/burner");
    leader.run(&format!("mkdir -p {image}"))?;
    leader.push(&format!("{image}/probe.elf"), probe::IMAGE)?;
    leader.push(&format!("{image}/image.toml"), BURNER_IMAGE.as_bytes())?;

    leader.run("godwit drs set --automation manual --round 2 --hold 2 --rise 2 --fall 2")?;
    for guest in BURNERS {
        leader.run(&format!(
            "godwit create {guest} --image burner --memory 64M --no-start"
        ))?;
        leader.run_within(LIMIT, &format!("godwit start {guest} --on {}", leader.name))?;
    }
    let hosts: Vec<&str> = lab.hosts().iter().map(|host| &*host.name).collect();
    leader.run(&format!("godwit rules group all {}", hosts.join(" ")))?;
    leader.run(&format!(
        "godwit rules add on {EVERYWHERE} all {}",
        BURNERS.join(" ")
    ))?;
    let crowded = work_of_all(leader)?;
    let crowded_permille = eventually("the guests being seen to starve", || {
        met_permille(leader).filter(|met| *met < STARVING_PERMILLE)
    })?;
    one_recommendation_is_applied(leader)?;
    leader.run("godwit drs set --automation full")?;
    eventually_within(LIMIT, "a host for each busy guest", || {
        (hosts_in_use(leader)? == BURNERS.len()).then_some(())
    })?;
    let even = work_of_all(leader)?;
    let even_permille = eventually("the guests being seen to get more", || {
        met_permille(leader).filter(|met| *met > crowded_permille)
    })?;
    println!(
        "        work of all guests together: {crowded:.0} pages a second on one host, {even:.0} \
         evened out, {:.2} times as much; {crowded_permille} and {even_permille} thousandths of \
         what they want",
        even / crowded
    );

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
