//! Leases on real NFSv4: whatever happens to a host or to the storage, one host writes at a time
//! and no acknowledged write is lost.
//!
//! `godwit-store drill` plays a guest's process: it claims the lease and writes numbered,
//! checksummed blocks under it. Each scenario has a datastore directory of its own.

use std::time::Duration;

use lab::host::DATASTORE;
use lab::scenario::Outcome;
use lab::{Cable, Direction, Host, Lab, eventually};

/// Epochs that the race goes through; every other one is a win. More by `GODWIT_RACE_EPOCHS`.
const RACE_EPOCHS: u64 = 240;
const RACE_LIMIT: Duration = Duration::from_mins(20);
/// Changes that each of two hosts makes to one spec.
const REVISIONS: u64 = 20;
/// Where the datastore lies on the storage host.
const EXPORT: &str = "/srv/export/vmstore";
/// Blocks after which a holder is taken to be at work.
const SOME_BLOCKS: usize = 10;

/// A scenario's datastore, and what runs on it.
struct Story {
    directory: String,
    name: &'static str,
}

/// A process on a host and its log.
struct Player<'a> {
    host: &'a Host,
    log: String,
    group: u32,
}

impl Story {
    fn begin(lab: &Lab, name: &'static str) -> lab::Result<Self> {
        let directory = format!("{DATASTORE}/drill-{name}");
        let [first, ..] = lab.hosts() else {
            return Err("no hosts".into());
        };
        first.run(&format!(
            "mkdir {directory} && cd {directory} && godwit-store init && \
             godwit-store drill prepare web1"
        ))?;
        Ok(Self { directory, name })
    }

    fn play<'a>(&self, host: &'a Host, role: &str, arguments: &str) -> lab::Result<Player<'a>> {
        let log = format!("{}-{role}", self.name);
        let line = format!(
            "exec godwit-store -d {} drill {role} {arguments} --host {}",
            self.directory, host.name
        );
        let group = host.spawn(&log, &line)?;
        Ok(Player {
            host,
            log: format!("/var/log/{log}.log"),
            group,
        })
    }

    /// A host that claims the lease as soon as it may, and is at work once it has it.
    fn hold<'a>(&self, host: &'a Host) -> lab::Result<Player<'a>> {
        self.play(host, "hold", "web1")
    }

    /// Every block is there, in the order of epochs, and so is every one that was acknowledged.
    fn verify(&self, at: &Host, players: &[&Player<'_>]) -> lab::Result<String> {
        let said = players.iter().map(|player| player.said());
        self.verify_said(at, &said.collect::<lab::Result<Vec<_>>>()?)
    }

    /// As [`Story::verify`], with what the players said.
    fn verify_said(&self, at: &Host, all: &[String]) -> lab::Result<String> {
        let mut acked = String::new();
        for (number, said) in all.iter().enumerate() {
            let path = format!("/tmp/{}-{number}.acked", self.name);
            at.push(&path, said.as_bytes())?;
            acked.push_str(" --acked ");
            acked.push_str(&path);
        }
        at.run(&format!(
            "godwit-store -d {} drill verify web1{acked}",
            self.directory
        ))
    }

    fn end(self, at: &Host, players: &[&Player<'_>]) -> Outcome {
        for player in players.iter().filter(|player| player.host.is_on()) {
            // It may have ended by itself.
            let _ = player.host.run(&format!("kill -9 -{}", player.group));
        }
        at.run(&format!("rm -rf {}", self.directory))?;
        Ok(())
    }
}

impl Player<'_> {
    fn said(&self) -> lab::Result<String> {
        self.host.run(&format!("cat {}", self.log))
    }

    fn blocks(&self) -> usize {
        self.said()
            .map_or(0, |said| said.matches(" acked ").count())
    }

    fn until_said(&self, what: &str) -> lab::Result<()> {
        let waited_for = format!("{} on {} saying {what:?}", self.log, self.host.name);
        eventually(&waited_for, || {
            self.said()
                .is_ok_and(|said| said.contains(what))
                .then_some(())
        })
    }

    /// Its writes fail, or it finds its lease taken, whichever comes first.
    fn until_ended(&self) -> lab::Result<()> {
        eventually("the old holder ending", || {
            let said = self.said().ok()?;
            (said.contains("lost:") || said.contains("failed:")).then_some(())
        })
    }

    fn until_at_work(&self) -> lab::Result<()> {
        let before = self.blocks();
        let waited_for = format!("{} writing", self.host.name);
        eventually(&waited_for, || {
            (self.blocks() >= before + SOME_BLOCKS).then_some(())
        })
    }
}

fn two(lab: &Lab) -> lab::Result<(&Host, &Host)> {
    let [a, b, ..] = lab.hosts() else {
        return Err("two hosts are needed".into());
    };
    Ok((a, b))
}

pub fn leases_one_wins_every_race(lab: &Lab) -> Outcome {
    let story = Story::begin(lab, "race")?;
    let epochs = match std::env::var("GODWIT_RACE_EPOCHS") {
        Ok(wish) => wish.parse()?,
        Err(_) => RACE_EPOCHS,
    };
    let race = format!("web1 --epochs {epochs}");
    let players = lab
        .hosts()
        .iter()
        .map(|host| story.play(host, "race", &race))
        .collect::<lab::Result<Vec<_>>>()?;
    for player in &players {
        let wait = format!(
            "while kill -0 {} 2>/dev/null; do sleep 1; done",
            player.group
        );
        player.host.run_within(RACE_LIMIT, &wait)?;
    }
    let mut won = Vec::new();
    for player in &players {
        let said = player.said()?;
        let epoch = |line: &str| line.split(" won ").nth(1)?.parse::<u64>().ok();
        won.extend(said.lines().filter_map(epoch));
    }
    won.sort_unstable();
    let all: Vec<u64> = (0..epochs / 2).map(|round| 2 * round + 1).collect();
    assert!(won.starts_with(&all), "not one winner each: {won:?}");
    story.end(players[0].host, &players.iter().collect::<Vec<_>>())
}

/// Two hosts change a guest's spec at the same time while a third reads it: no change is lost and
/// no read fails, though files are replaced and removed under it. The guest goes although one host
/// has its disk open.
pub fn leases_a_spec_loses_no_change(lab: &Lab) -> Outcome {
    let [a, b, c] = lab.hosts() else {
        return Err("three hosts are needed".into());
    };
    let story = Story::begin(lab, "revise")?;
    let revise = format!("web1 --times {REVISIONS}");
    let writers = [a, b].map(|host| story.play(host, "revise", &revise));
    let store = format!("godwit-store -d {}", story.directory);
    let last = 1 + 2 * REVISIONS;
    c.run(&format!("{store} drill follow web1 --until {last}"))?;
    for writer in writers {
        let writer = writer?;
        writer.until_said(&format!("made {REVISIONS} revisions"))?;
        let count = format!("{} = {REVISIONS}", writer.host.name);
        let spec = c.run(&format!("cat {}/guests/web1/guest.toml", story.directory))?;
        assert!(spec.contains(&count), "no {count} in {spec}");
    }
    let disk = format!("{}/guests/web1/drill.raw", story.directory);
    a.run(&format!("exec 9<{disk}; {store} drill remove web1"))?;
    let left = b.run(&format!("{store} guests"))?;
    assert_eq!(left, "no guests");
    story.end(a, &[])
}

pub fn leases_a_power_cut_moves_the_guest(lab: &Lab) -> Outcome {
    let (a, b) = two(lab)?;
    let story = Story::begin(lab, "power")?;
    let old = story.hold(a)?;
    old.until_at_work()?;
    let new = story.hold(b)?;
    // Its log goes with it.
    let before = old.said()?;
    a.power_off()?;
    new.until_at_work()?;
    new.until_said("holds epoch 2")?;
    story.verify_said(b, &[before, new.said()?])?;
    story.end(b, &[&new])
}

pub fn leases_a_thawed_holder_writes_nothing(lab: &Lab) -> Outcome {
    let (a, b) = two(lab)?;
    let story = Story::begin(lab, "thaw")?;
    let old = story.hold(a)?;
    old.until_at_work()?;
    let new = story.hold(b)?;
    a.freeze()?;
    new.until_at_work()?;
    a.thaw()?;
    old.until_ended()?;
    new.until_at_work()?;
    story.verify(b, &[&old, &new])?;
    story.end(b, &[&old, &new])
}

/// The holder's clock shows that no time has passed: only the target can keep it out.
pub fn leases_a_holder_whose_clock_stood_still_reaches_no_disk(lab: &Lab) -> Outcome {
    let (a, b) = two(lab)?;
    let story = Story::begin(lab, "clock")?;
    let old = story.hold(a)?;
    old.until_at_work()?;
    let new = story.hold(b)?;
    let before = old.said()?;
    a.stop_clock()?;
    new.until_at_work()?;
    a.start_clock()?;
    old.until_ended()?;
    new.until_at_work()?;
    // What the old one believes to have written after that went to a file without a name.
    story.verify_said(b, &[before, new.said()?])?;
    story.end(b, &[&old, &new])
}

pub fn leases_a_cut_that_heals_in_time_is_a_pause(lab: &Lab) -> Outcome {
    let (a, _) = two(lab)?;
    let story = Story::begin(lab, "blip")?;
    let holder = story.hold(a)?;
    holder.until_at_work()?;
    a.cut(Cable::Storage, Direction::Both);
    holder.until_said(" pause")?;
    a.heal(Cable::Storage, Direction::Both);
    holder.until_said("run epoch 2")?;
    holder.until_at_work()?;
    story.verify(a, &[&holder])?;
    story.end(a, &[&holder])
}

pub fn leases_a_cut_that_lasts_moves_the_guest(lab: &Lab) -> Outcome {
    let (a, b) = two(lab)?;
    let story = Story::begin(lab, "cut")?;
    let old = story.hold(a)?;
    old.until_at_work()?;
    let new = story.hold(b)?;
    a.cut(Cable::Storage, Direction::Both);
    new.until_at_work()?;
    old.until_said(" pause")?;
    a.heal(Cable::Storage, Direction::Both);
    old.until_ended()?;
    new.until_at_work()?;
    story.verify(b, &[&old, &new])?;
    story.end(b, &[&old, &new])
}

pub fn leases_a_storage_restart_moves_nobody(lab: &Lab) -> Outcome {
    let (a, b) = two(lab)?;
    let story = Story::begin(lab, "restart")?;
    let holder = story.hold(a)?;
    holder.until_at_work()?;
    let contender = story.hold(b)?;
    lab.storage().restart()?;
    holder.until_at_work()?;
    let said = contender.said()?;
    assert!(
        !said.contains("holds"),
        "an outage that all saw moved the guest: {said}"
    );
    story.verify(a, &[&holder])?;
    story.end(a, &[&holder, &contender])
}

/// The server replaces a file that a host has open, and forgets the old one: what is open is stale,
/// and found again by its name.
pub fn leases_a_stale_file_is_found_again(lab: &Lab) -> Outcome {
    let (a, b) = two(lab)?;
    let story = Story::begin(lab, "stale")?;
    let holder = story.hold(a)?;
    holder.until_at_work()?;
    let store = format!("godwit-store -d {}", story.directory);
    let spec = format!("{}/guests/web1/guest.toml", story.directory);
    let reader =
        format!("exec 8< {spec}; while sleep 1; do {store} check >/dev/null && echo well; done");
    let reader_group = b.spawn("stale-reader", &reader)?;
    eventually("the reader", || {
        b.run("grep -q well /var/log/stale-reader.log").ok()
    })?;
    // On the server itself, so that no client hears of it.
    let there = story.directory.replace(DATASTORE, EXPORT);
    for file in [
        format!("hosts/{}/heartbeat", a.name),
        "guests/web1/guest.toml".to_owned(),
    ] {
        let path = format!("{there}/{file}");
        lab.storage().host.run(&format!(
            "cp {path} {path}.copy && mv {path}.copy {path} && sync"
        ))?;
    }
    lab.storage().restart()?;
    let stale = format!(
        "dmesg | grep 'recovery failed for open file {}/heartbeat'",
        a.name
    );
    eventually("the open heartbeat being stale", || a.run(&stale).ok())?;
    holder.until_at_work()?;
    b.run("grep -c well /var/log/stale-reader.log > /tmp/stale-seen")?;
    eventually("the reader reading on", || {
        b.run("test $(grep -c well /var/log/stale-reader.log) -gt $(cat /tmp/stale-seen)")
            .ok()
    })?;
    b.run(&format!(
        "kill -9 -{reader_group}; ! grep -v well /var/log/stale-reader.log"
    ))?;
    story.verify(b, &[&holder])?;
    story.end(a, &[&holder])
}

pub fn leases_a_dead_agent_costs_no_guest(lab: &Lab) -> Outcome {
    let (a, b) = two(lab)?;
    let story = Story::begin(lab, "agent")?;
    let agent = story.play(a, "beat", "web1")?;
    agent.until_said("beats as")?;
    let holder = story.play(a, "hold", "web1 --as-guest")?;
    holder.until_at_work()?;
    let contender = story.hold(b)?;
    a.run(&format!("kill -9 -{}", agent.group))?;
    // Longer than any watch: by the clock in the holder's own log.
    let clock = |said: &str| said.lines().last()?.split(' ').next()?.parse::<f64>().ok();
    let begun = clock(&holder.said()?).ok_or("the holder said nothing")?;
    eventually("ten seconds of work without the agent", || {
        clock(&holder.said().ok()?).filter(|now| *now > begun + 10.0)
    })?;
    let said = contender.said()?;
    assert!(
        !said.contains("holds"),
        "a dead agent moved the guest: {said}"
    );
    story.verify(a, &[&holder])?;
    story.end(a, &[&holder, &contender])
}
