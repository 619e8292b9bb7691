//! A stock Debian guest with its disk on NFS moves between hosts, under a real lease.

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

fn migrate(guest: &Guest<'_>, to: &Host, more: &str) -> lab::Result<serde_json::Value> {
    let said = guest.host().run_within(
        MIGRATE_LIMIT,
        &format!(
            "vmm migrate --api-socket /run/web1/api --to {}:{PORT} --verify --accept-longer --json {more}",
            to.address
        ),
    )?;
    Ok(serde_json::from_str(&said).map_err(|error| format!("{error}: {said}"))?)
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

/// There over plain TCP and back over mutual TLS, every page compared: the guest does not notice,
/// nor does who is connected to it. A cable that is cut in mid-flight costs it nothing.
pub fn a_debian_guest_moves_there_and_back(lab: &Lab) -> Outcome {
    let [a, b, c, ..] = lab.hosts() else {
        return Err("three hosts are needed".into());
    };
    let store = Store::new(a)?;
    give_certificates(&[a, b])?;
    let mut guest = Guest::start(
        a,
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
    for (to, tls_dir) in [(b, None), (a, Some(TLS_DIR))] {
        let waiting = guest.awaited_on(to, PORT, tls_dir)?;
        let more = tls_dir.map(|dir| format!("--tls-dir {dir}"));
        let summary = migrate(&guest, to, &more.unwrap_or_default())?;
        assert_eq!(summary["verified"], true, "{summary}");
        println!("        moved to {}: {summary}", to.name);
        assert_eq!(guest.moved(to, waiting)?, MOVED);
        stream.goes_on()?;
    }

    let waiting = guest.awaited_on(b, PORT, None)?;
    let asking = a.start_command(&[
        "sh",
        "-c",
        &format!(
            "vmm migrate --api-socket /run/web1/api --to {}:{PORT} --bandwidth-max {SLOW_BYTES_PER_S} 2>&1",
            b.address
        ),
    ])?;
    eventually("memory being on its way", || {
        let progress = guest.control("migration").ok()?;
        let progress: serde_json::Value = serde_json::from_str(&progress).ok()?;
        (progress["sent_bytes"].as_u64()? > SOME_BYTES).then_some(())
    })?;
    b.cut(Cable::Management, Direction::Both);
    stream.goes_on()?;
    let mut said = String::new();
    while let Some(event) = asking.next(Instant::now() + MIGRATE_LIMIT) {
        match event {
            Event::Output(bytes) | Event::Error(bytes) => {
                said.push_str(&String::from_utf8_lossy(&bytes));
            }
            Event::Ended(_) => break,
        }
    }
    b.heal(Cable::Management, Direction::Both);
    assert!(said.contains("the guest stays on this host"), "{said}");
    drop(waiting);
    b.run("tunctl -d tap100 >/dev/null; rm -rf /run/web1")?;
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
    guest.send("poweroff")?;
    assert_eq!(guest.ends()?, 0, "of vmm after poweroff");
    drop(guest);
    // Who takes a guest over puts its disks into files of its epoch.
    a.run(&format!("rm -rf {} /var/log/moving-claim.log", store.root))?;
    for host in [a, b] {
        host.run(&format!("rm -rf {TLS_DIR}"))?;
    }
    Ok(())
}
