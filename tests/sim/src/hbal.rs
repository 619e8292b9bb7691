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
    /// The measure before the plan, in millionths.
    pub before_ppm: u64,
    /// The measure after it.
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
    let (mut before, mut after) = (None, None);
    for line in stdout.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // `  1. guest host0 => host3 0.57938947 a=f:host3`
            [number, name, _, "=>", ..] if number.ends_with('.') => {
                moves += 1;
                mib += cluster.guests.get(name)?.configured.memory_mib;
            }
            ["Initial", "coefficients:", "overall", value] => before = Some(ppm(value)?),
            ["Final", "coefficients:", "overall", value] => after = Some(ppm(value)?),
            _ => {}
        }
    }
    let before_ppm = before?;
    Some(Outcome {
        before_ppm,
        // Where nothing is to be done only the first is said.
        score_ppm: after.unwrap_or(before_ppm),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skewed::{self, Size};

    /// As ganeti-htools 3.0 has it, shortened.
    const SAID: &str = "\
Group size 2 nodes, 2 instances
Initial check done: 0 bad nodes, 0 bad instances.
Initial coefficients: overall 0.62500000
   Field                         Value Weight
   free_mem_cv              0.37500000  x0.50
Trying to minimize the CV...
    1. guest00000 host0000          => host0001            0.12500000 a=fa:host0001
Final coefficients:   overall 0.12500000
   free_mem_cv              0.12500000  x0.50
Solution length=1
";

    #[test]
    fn what_hbal_says_is_understood_and_the_rest_is_not_guessed() {
        let size = Size {
            hosts: 2,
            guests: 2,
            rules: 0,
        };
        let mut cluster = skewed::cluster(1, size);
        let first = cluster.guests.get_mut("guest00000").expect("is there");
        first.configured.memory_mib = 3072;
        let took = Duration::from_millis(7);
        let outcome = parse(SAID, &cluster, took).expect("is understood");
        assert_eq!((outcome.before_ppm, outcome.score_ppm), (625_000, 125_000));
        assert_eq!((outcome.moves, outcome.gib), (1, 3));
        let nothing_to_do = "Initial coefficients: overall 0.01000000\nNothing to do\n";
        let outcome = parse(nothing_to_do, &cluster, took).expect("is understood");
        assert_eq!((outcome.score_ppm, outcome.moves), (10_000, 0));
        assert!(parse("Final coefficients: overall 0.1\n", &cluster, took).is_none());
        let unknown = SAID.replace("guest00000", "guest77777");
        assert!(parse(&unknown, &cluster, took).is_none());
    }
}
