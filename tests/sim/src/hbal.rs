//! Our planner and Ganeti's `hbal` on the same clusters, by the same measure.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cluster_core::model::Cluster;

/// What a planner reached.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// The measure after the plan, in millionths.
    pub score_ppm: u64,
    /// Moves.
    pub moves: usize,
    /// Memory of the guests moved, in GiB.
    pub gib: u64,
    /// How long planning took.
    pub took: Duration,
}

/// The cluster in the text format that `hbal -t` reads.
pub fn text(cluster: &Cluster) -> String {
    let mut text = String::from("default|group|preferred||\n\n");
    for (name, host) in &cluster.hosts {
        let total = host.capacity.memory_mib;
        let used: u64 = cluster
            .guests
            .values()
            .filter(|guest| guest.host.as_ref() == Some(name))
            .map(|guest| guest.configured.memory_mib)
            .sum();
        let cores = host.capacity.mcpu / 1000;
        let free = total - used;
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{name}|{total}|0|{free}|1000000|1000000|{cores}|N|group|1||N|0|0|1.0"
        );
    }
    text.push('\n');
    for (name, guest) in &cluster.guests {
        let Some(host) = &guest.host else { continue };
        let (memory, cores) = (guest.configured.memory_mib, guest.configured.mcpu / 1000);
        // Spindles zero: the measure is that of memory and cores alone.
        let _ = writeln!(
            text,
            "{name}|{memory}|0|{cores}|running|Y|{host}||sharedfile||0"
        );
    }
    let policy = "1024,1,1,1,1,1|0,1,0,1,0,0;1048576,1024,1048576,16,8,1024|sharedfile|64|64";
    let _ = write!(text, "\n\n|{policy}\ndefault|{policy}\n");
    text
}

/// Runs `hbal` on a cluster. `None`: it did not finish in time.
pub fn run(cluster: &Cluster, scratch: &Path, patience: Duration) -> io::Result<Option<Outcome>> {
    let file = scratch.join("cluster.data");
    std::fs::write(&file, text(cluster))?;
    let began = Instant::now();
    let child = Command::new("timeout")
        .arg(format!("{:.1}", patience.as_secs_f64()))
        .args(["hbal", "--ignore-dynu", "-v", "-v", "-t"])
        .arg(&file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let output = child.wait_with_output()?;
    let took = began.elapsed();
    if output.status.code() == Some(124) {
        return Ok(None);
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    parse(&stdout, cluster, took)
        .map(Some)
        .ok_or_else(|| io::Error::other(format!("hbal said what was not understood: {stdout}")))
}

fn parse(stdout: &str, cluster: &Cluster, took: Duration) -> Option<Outcome> {
    let (mut moves, mut mib) = (0, 0);
    let mut score = None;
    for line in stdout.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // `  1. guest host0 => host3 0.57938947 a=f:host3`
            [number, name, _, "=>", ..] if number.ends_with('.') => {
                moves += 1;
                mib += cluster.guests.get(name)?.configured.memory_mib;
            }
            ["Final", "coefficients:", "overall", value] => score = Some(value),
            ["Initial", "coefficients:", "overall", value] if score.is_none() => {
                score = Some(value);
            }
            _ => {}
        }
    }
    Some(Outcome {
        score_ppm: ppm(score?)?,
        moves,
        gib: mib / 1024,
        took,
    })
}

/// `0.57938947` in millionths.
fn ppm(decimal: &str) -> Option<u64> {
    let (whole, rest) = decimal.split_once('.')?;
    let rest: u64 = rest.get(..6)?.parse().ok()?;
    Some(whole.parse::<u64>().ok()? * 1_000_000 + rest)
}
