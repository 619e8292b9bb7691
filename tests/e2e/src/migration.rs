//! A stock Debian guest with its disk on NFS moves between hosts, under a real lease.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lab::agent::{Event, Running};
use lab::host::DATASTORE;
use lab::scenario::Outcome;
use lab::{Cable, Direction, Host, Lab, PATIENCE, eventually, eventually_within};
use shared_storage::trust::Authority;

use crate::guest::{Guest, Wish};

const PORT: u16 = 7777;
/// Where hosts keep their certificates in this scenario.
const TLS_DIR: &str = "/run/migration-tls";
/// Memory travels at some MiB/s between emulated hosts that share two processors.
const MIGRATE_LIMIT: Duration = Duration::from_secs(5 * PATIENCE.as_secs());
/// Exit code of a VMM whose guest has moved.
const MOVED: i32 = 13;
/// So slow that a cut comes in mid-flight.
const SLOW_BYTES_PER_S: u64 = 2 << 20;
const SOME_BYTES: u64 = 4 << 20;
/// What one host's processor lacks: nothing in a host needs it.
const FEATURE: &str = "adx";
/// What emulated clocks drift by.
const CLOCK_SLACK_MS: i64 = 500;

/// A datastore with one guest, which `first` may run.
struct Store {
    root: String,
}

impl Store {
    fn new(first: &Host) -> lab::Result<Self> {
        let root = format!("{DATASTORE}/moving");
        first.run(&format!(
            "mkdir {root} && cd {root} && godwit-store init && godwit-store drill prepare web1 && \
             cp --reflink=always {DATASTORE}/images/debian/root.qcow2 guests/web1/"
        ))?;
        // Plays the agent: claims the lease for the VMM that will follow.
        let claims = first.spawn(
            "moving-claim",
            &format!(
                "cd {root} && exec godwit-store drill hold web1 --host {}",
                first.name
            ),
        )?;
        eventually("the first host having the lease", || {
            let said = first.run("cat /var/log/moving-claim.log").ok()?;
            said.contains("holds epoch").then_some(())
        })?;
        first.run(&format!("kill -9 -{claims}"))?;
        Ok(Self { root })
    }
}

/// The numbered lines of the guest's endless answer, over one TCP connection.
struct Stream {
    connection: Running,
    text: String,
}

impl Stream {
    fn open(from: &Host) -> lab::Result<Self> {
        let connection = from.connect("10.0.0.100", 80)?;
        let request = b"GET /cgi-bin/stream HTTP/1.0\r\n\r\n";
        connection.input().write(request, PATIENCE)?;
        Ok(Self {
            connection,
            text: String::new(),
        })
    }

    /// Waits for some more lines; every number must follow the one before it.
    fn goes_on(&mut self) -> lab::Result<()> {
        let before = self.numbers().len();
        let deadline = Instant::now() + PATIENCE;
        while self.numbers().len() < before + 3 {
            match self.connection.next(deadline) {
                Some(Event::Output(bytes)) => {
                    self.text.push_str(&String::from_utf8_lossy(&bytes));
                }
                other => {
                    let why = format!("the guest's connection does not go on: {other:?}");
                    return Err(why.into());
                }
            }
        }
        let numbers = self.numbers();
        assert!(
            numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "{numbers:?}"
        );
        Ok(())
    }

    /// Of all whole lines.
    fn numbers(&self) -> Vec<u64> {
        let whole = self.text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let number = |line: &str| line.split_whitespace().next()?.parse().ok();
        whole.lines().filter_map(number).collect()
    }
}

/// A `vmm migrate` under way.
struct Migrating(Running);

impl Migrating {
    fn start(guest: &Guest<'_>, to: &Host, more: &str) -> lab::Result<Self> {
        let line = format!(
            "exec vmm migrate --api-socket /run/web1/api --to {}:{PORT} {more} 2>&1",
            to.address
        );
        Ok(Self(guest.host().start_command(&["sh", "-c", &line])?))
    }

    /// Waits for its end; gives what it said.
    fn said(self) -> String {
        let mut said = String::new();
        while let Some(event) = self.0.next(Instant::now() + MIGRATE_LIMIT) {
            match event {
                Event::Output(bytes) | Event::Error(bytes) => {
                    said.push_str(&String::from_utf8_lossy(&bytes));
                }
                Event::Ended(_) => break,
            }
        }
        said
    }
}

/// How often a host has announced who lives there: by reverse and by gratuitous ARP.
fn announcements(host: &Host) -> [u64; 2] {
    let cable = host.cable(Cable::Management);
    [&cable.reverse_arps, &cable.gratuitous_arps].map(|count| count.load(Ordering::Relaxed))
}

fn announces_again(host: &Host, before: [u64; 2]) -> Outcome {
    Ok(eventually("announcements, repeated", || {
        let now = announcements(host);
        (now[0] >= before[0] + 2 && now[1] >= before[1] + 2).then_some(())
    })?)
}

/// The source stands still between its commit and its word of it, until its cable is cut: the
/// target learns from the lease that the guest is its own.
fn loses_its_cable_at_the_commit(source: &Host, stream: &mut Stream) -> Outcome {
    let stopped = eventually_within(MIGRATE_LIMIT, "the source standing still", || {
        source
            .run("grep -l '^State:.*(stopped)' /proc/[0-9]*/status | cut -d/ -f3")
            .ok()
            .filter(|process| !process.trim().is_empty())
    })?;
    source.cut(Cable::Management, Direction::Both);
    source.run(&format!("kill -CONT {}", stopped.trim()))?;
    stream.goes_on()?;
    source.heal(Cable::Management, Direction::Both);
    Ok(())
}

/// A guest that was shown all features of `from` cannot move to where one is missing, which is
/// named.
fn refuses_what_it_lacks(from: &Host, to: &Host) -> Outcome {
    let wish = Wish {
        name: "web2",
        number: 101,
        ..Wish::default()
    };
    let guest = Guest::start(from, wish)?;
    eventually("the guest having begun", || guest.control("info").ok())?;
    let waiting = guest.awaited_on(to, PORT, None, "")?;
    let said = from.run(&format!(
        "vmm migrate --api-socket /run/web2/api --to {}:{PORT} --dry-run 2>&1 || true",
        to.address
    ))?;
    assert!(said.contains("lacks") && said.contains(FEATURE), "{said}");
    drop(waiting);
    to.run("tunctl -d tap101 >/dev/null; rm -rf /run/web2")?;
    Ok(guest.kill()?)
}

/// By how much the guest's clock is ahead of its host's: between the two, in milliseconds.
#[derive(Debug)]
struct Ahead(i64, i64);

impl Ahead {
    fn look(guest: &Guest<'_>) -> lab::Result<Self> {
        let host_ms = || -> lab::Result<i64> { Ok(number(&guest.host().run("date +%s")?)? * 1000) };
        let before = host_ms()?;
        let here = number(&guest.run("date +%s%3N")?)?;
        Ok(Self(here - host_ms()? - 999, here - before))
    }

    /// Nothing was lost with the standstill, which takes seconds here.
    fn is_as(&self, other: &Self) -> bool {
        self.0 <= other.1 + CLOCK_SLACK_MS && other.0 <= self.1 + CLOCK_SLACK_MS
    }
}

fn number(said: &str) -> lab::Result<i64> {
    let read = said.trim().parse();
    Ok(read.map_err(|error| format!("{said:?} is no number: {error}"))?)
}

fn give_certificates(hosts: &[&Host]) -> Outcome {
    let dir = tempfile::tempdir()?;
    let authority = Authority::open_or_create(&dir.path().join("trust"))?;
    for host in hosts {
        let minted = dir.path().join(&host.name);
        authority.mint(&host.name)?.write(&minted)?;
        host.run(&format!("mkdir -p {TLS_DIR}"))?;
        for file in std::fs::read_dir(&minted)? {
            let file = file?;
            let name = file.file_name();
            host.push_file(
                &file.path(),
                &format!("{TLS_DIR}/{}", name.to_string_lossy()),
            )?;
        }
    }
    Ok(())
}

/// Between hosts with different processors, there over plain TCP and back over mutual TLS, a cable
/// cut at the commit, every page compared: the guest does not notice, nor does who is connected to
/// it. A cable that is cut in mid-flight costs it nothing, and its disk is whole.
pub fn a_debian_guest_moves_there_and_back(lab: &Lab) -> Outcome {
    let [a, b, c, ..] = lab.hosts() else {
        return Err("three hosts are needed".into());
    };
    b.power_off()?;
    b.power_on_lacking(FEATURE)?;
    b.mount_datastore()?;
    refuses_what_it_lacks(a, b)?;
    let store = Store::new(b)?;
    give_certificates(&[a, b])?;
    // The lesser host begins: what a guest was shown there, every host has.
    let mut guest = Guest::start(
        b,
        Wish {
            image: "debian",
            memory_mib: 192,
            disks: vec!["path=guests/web1/root.qcow2,format=qcow2".to_owned()],
            datastore: Some(store.root.clone()),
            ..Wish::default()
        },
    )?;
    let first = guest.answers(c)?;
    guest.log_in()?;
    let mut stream = Stream::open(c)?;
    stream.goes_on()?;
    let ahead = Ahead::look(&guest)?;
    // On the way back its VMM on the first host stands still at the commit.
    for (to, tls_dir, fault) in [(a, None, "before-commit:stop"), (b, Some(TLS_DIR), "")] {
        let waiting = guest.awaited_on(to, PORT, tls_dir, fault)?;
        let announced = announcements(to);
        let tls = tls_dir.map(|dir| format!("--tls-dir {dir}"));
        let more = format!(
            "--verify --accept-longer --json {}",
            tls.unwrap_or_default()
        );
        let migrating = Migrating::start(&guest, to, &more)?;
        if tls_dir.is_some() {
            loses_its_cable_at_the_commit(guest.host(), &mut stream)?;
        }
        let said = migrating.said();
        let summary: serde_json::Value =
            serde_json::from_str(&said).map_err(|error| format!("{error}: {said}"))?;
        assert_eq!(summary["verified"], true, "{summary}");
        println!("        moved to {}: {summary}", to.name);
        assert_eq!(guest.moved(to, waiting)?, MOVED);
        announces_again(to, announced)?;
        stream.goes_on()?;
        let now = Ahead::look(&guest)?;
        assert!(now.is_as(&ahead), "{ahead:?} and then {now:?} ms ahead");
    }

    let waiting = guest.awaited_on(a, PORT, None, "")?;
    let slowly = format!("--bandwidth-max {SLOW_BYTES_PER_S}");
    let migrating = Migrating::start(&guest, a, &slowly)?;
    eventually("memory being on its way", || {
        let progress = guest.control("migration").ok()?;
        let progress: serde_json::Value = serde_json::from_str(&progress).ok()?;
        (progress["sent_bytes"].as_u64()? > SOME_BYTES).then_some(())
    })?;
    a.cut(Cable::Management, Direction::Both);
    stream.goes_on()?;
    let said = migrating.said();
    a.heal(Cable::Management, Direction::Both);
    assert!(said.contains("the guest stays on this host"), "{said}");
    drop(waiting);
    a.run("tunctl -d tap100 >/dev/null; rm -rf /run/web1")?;
    stream.goes_on()?;

    let last = eventually_within(MIGRATE_LIMIT, "the counter on its disk going on", || {
        guest.page(c).filter(|page| page.counter > first.counter)
    })?;
    assert_eq!(last.boot, first.boot);
    assert!(guest.run("guest-service check")?.contains("all right"));
    let complaints = guest.run(
        "dmesg | grep -iE 'lockup|stall|hung|clocksource.*unstable|time.*backward|i/o error' || true",
    )?;
    assert_eq!(complaints, "");
    // Read only, as its disk holds it: nothing lies in a journal or in a cache any more.
    let found = guest.run(
        "echo u > /proc/sysrq-trigger; until grep -q ' / ext4 ro' /proc/mounts; do sleep 0.1; done; \
         e2fsck -fn /dev/vda 2>&1; echo code $?",
    )?;
    assert!(found.contains("code 0"), "{found}");
    guest.control("power-off")?;
    assert_eq!(guest.ends()?, 0, "of vmm after it was switched off");
    drop(guest);
    // Who takes a guest over puts its disks into files of its epoch.
    a.run(&format!("rm -rf {} /var/log/moving-claim.log", store.root))?;
    for host in [a, b] {
        host.run(&format!("rm -rf {TLS_DIR}"))?;
    }
    b.power_off()?;
    b.power_on()?;
    Ok(b.mount_datastore()?)
}
