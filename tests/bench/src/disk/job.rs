//! What fio does, and what it says of it.

use lab::shell::Shell;

/// A job of fio's.
pub struct Job {
    /// Its name in the table.
    pub name: &'static str,
    rw: &'static str,
    block_kib: u32,
    depth: u32,
}

/// All of them, in their order.
pub const JOBS: [Job; 5] = [
    Job::new("sequential read", "read", 128, 8),
    Job::new("sequential write", "write", 128, 8),
    Job::new("random read, 16 at once", "randread", 4, 16),
    Job::new("random write, 16 at once", "randwrite", 4, 16),
    Job::new("random read, one at a time", "randread", 4, 1),
];

const SECONDS: u32 = 2;
const DISK: &str = "/dev/vdb";
/// Writes every block of the disk once.
pub const FILL: &str =
    "fio --name=fill --filename=/dev/vdb --rw=write --bs=1M --direct=1 --end_fsync=1 >/dev/null";

// Fields of fio's terse output, version 3, counted from 0 (fio(1), "TERSE OUTPUT").
const VERSION: &str = "3;";
const READ_KIB_S: usize = 6;
const READ_IOPS: usize = 7;
const WRITE_KIB_S: usize = 47;
const WRITE_IOPS: usize = 48;

impl Job {
    const fn new(name: &'static str, rw: &'static str, block_kib: u32, depth: u32) -> Self {
        Self {
            name,
            rw,
            block_kib,
            depth,
        }
    }

    /// Unit of what it got: requests where they are small, bytes where they are large.
    pub fn unit(&self) -> &'static str {
        if self.is_large() { "MiB/s" } else { "1/s" }
    }

    fn is_large(&self) -> bool {
        self.block_kib > 4
    }

    fn arguments(&self) -> String {
        let Self {
            rw,
            block_kib,
            depth,
            ..
        } = self;
        format!("--name={rw} --stonewall --rw={rw} --bs={block_kib}k --iodepth={depth}")
    }

    /// What a line of fio's says that it got.
    fn read(&self, line: &str) -> Option<f64> {
        let fields: Vec<&str> = line.split(';').collect();
        let writes = self.rw.ends_with("write");
        let field = match (self.is_large(), writes) {
            (true, false) => READ_KIB_S,
            (true, true) => WRITE_KIB_S,
            (false, false) => READ_IOPS,
            (false, true) => WRITE_IOPS,
        };
        let value: f64 = fields.get(field)?.trim().parse().ok()?;
        Some(if self.is_large() {
            value / 1024.0
        } else {
            value
        })
    }
}

/// Runs all jobs in a guest, one after the other; what each got.
pub fn run_all(guest: &Shell) -> lab::Result<Vec<f64>> {
    let jobs: Vec<String> = JOBS.iter().map(Job::arguments).collect();
    // Options before the first job hold for all.
    let said = guest.run(&format!(
        "fio --output-format=terse --terse-version=3 --filename={DISK} --direct=1 --ioengine=libaio \
         --time_based --runtime={SECONDS} {}",
        jobs.join(" ")
    ))?;
    read_all(&said).ok_or_else(|| format!("fio in the guest said {said:?}").into())
}

fn read_all(said: &str) -> Option<Vec<f64>> {
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with(VERSION))
        .collect();
    if lines.len() != JOBS.len() {
        return None;
    }
    let values = JOBS.iter().zip(lines).map(|(job, line)| job.read(line));
    values.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fio_says_is_read() {
        let line = |read_kib_s: u32, read_iops: u32, write_kib_s: u32, write_iops: u32| {
            let mut fields = vec!["0".to_owned(); 121];
            fields[0] = "3".to_owned();
            fields[READ_KIB_S] = read_kib_s.to_string();
            fields[READ_IOPS] = read_iops.to_string();
            fields[WRITE_KIB_S] = write_kib_s.to_string();
            fields[WRITE_IOPS] = write_iops.to_string();
            fields.join(";")
        };
        let lines = [
            line(2048, 16, 0, 0),
            line(0, 0, 1024, 8),
            line(1200, 300, 0, 0),
            line(0, 0, 800, 200),
            line(400, 100, 0, 0),
        ];
        let said = format!("fio: a word of warning\n{}\n", lines.join("\n"));
        assert_eq!(read_all(&said), Some(vec![2.0, 1.0, 300.0, 200.0, 100.0]));
        assert_eq!(read_all(&lines[0]), None);
    }
}
