//! What the machine can do at best in the same minute: loopback TCP and copying memory.

use std::ffi::c_void;
use std::fmt;
use std::hint::black_box;
use std::io::{self, BufRead, BufReader};
use std::process::{Command, Stdio};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::running::Running;

const COPY_BYTES: usize = 256 << 20;
const COPY_FOR: Duration = Duration::from_millis(500);

/// Memory that the machine has backed; whoever asks next for memory gets it when this is dropped.
///
/// On a machine that is itself a guest, memory that its host has to back for the first time
/// would be most of what is measured; and such a host takes free memory back within seconds.
pub struct Warm {
    start: *mut c_void,
    bytes: usize,
}

impl Warm {
    /// Take so much and touch all of it.
    pub fn take(mib: u64) -> io::Result<Warm> {
        let bytes = (mib << 20) as usize;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at no fixed address touches nothing that exists.
        let start = unsafe { mmap_anonymous(null_mut(), bytes, access, MapFlags::PRIVATE) }?;
        let warm = Warm { start, bytes };
        // SAFETY: the range is the mapping just made; neither advice changes its content. A
        // kernel without transparent huge pages refuses the first, which costs time only.
        unsafe {
            let _ = madvise(start, bytes, Advice::LinuxHugepage);
            madvise(start, bytes, Advice::LinuxPopulateWrite)?;
        }
        Ok(warm)
    }
}

impl Drop for Warm {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and nobody looks into it.
        let _ = unsafe { munmap(self.start, self.bytes) };
    }
}

/// The two rates.
pub struct Reference {
    connections: u32,
    tcp: Result<f64, String>,
    copy_mib_s: f64,
}

impl Reference {
    /// Measure both.
    pub fn measure(connections: u32) -> Reference {
        Reference {
            connections,
            tcp: tcp_mib_s(connections),
            copy_mib_s: copy_mib_s(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connections = self.connections;
        match &self.tcp {
            Ok(mib_s) => writeln!(
                f,
                "\niperf3 over loopback, {connections} streams: {mib_s:.0} MiB/s"
            )?,
            Err(why) => writeln!(f, "\nSKIPPED: iperf3: {why}")?,
        }
        writeln!(f, "memcpy, one thread: {:.0} MiB/s", self.copy_mib_s)
    }
}

fn copy_mib_s() -> f64 {
    let from = vec![1u8; COPY_BYTES];
    let mut to = vec![2u8; COPY_BYTES];
    let began = Instant::now();
    let mut copies = 0;
    while began.elapsed() < COPY_FOR {
        to.copy_from_slice(black_box(&from));
        black_box(&to);
        copies += 1;
    }
    f64::from(copies) * (COPY_BYTES >> 20) as f64 / began.elapsed().as_secs_f64()
}

fn tcp_mib_s(connections: u32) -> Result<f64, String> {
    let port = free_port().map_err(|error| format!("no free port: {error}"))?;
    let port = port.to_string();
    let failed = |error: io::Error| format!("cannot start iperf3: {error}");
    let mut server = Command::new("iperf3")
        .args(["-s", "-1", "-B", "127.0.0.1", "-p", &port, "--forceflush"])
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)
        .map_err(failed)?;
    // It says two lines once it listens.
    let said = server.0.stdout.take().ok_or("no output")?;
    let listens = BufReader::new(said)
        .lines()
        .map_while(Result::ok)
        .any(|line| line.contains("listening"));
    if !listens {
        return Err("it does not listen".to_owned());
    }
    let output = Command::new("iperf3")
        .args(["-c", "127.0.0.1", "-p", &port, "-t", "2", "-J", "-P"])
        .arg(connections.to_string())
        .output()
        .map_err(failed)?;
    let answer: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    let bits = answer["end"]["sum_received"]["bits_per_second"].as_f64();
    let bits = bits.ok_or_else(|| answer["error"].to_string())?;
    Ok(bits / 8.0 / f64::from(1 << 20))
}

/// A TCP port that nobody has at the moment.
fn free_port() -> io::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.port())
}
