//! What the machine can do at best in the same minute: loopback TCP and copying memory.

use std::ffi::c_void;
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
        let mut warm = Warm { start, bytes };
        // SAFETY: the range is the mapping just made, whose content the advice does not change. A
        // kernel without transparent huge pages refuses it, which costs time only.
        let _ = unsafe { madvise(start, bytes, Advice::LinuxHugepage) };
        Warm::populate(warm.bytes_mut())?;
        Ok(warm)
    }

    /// Touch all of `memory`, which lies in whole pages.
    pub fn populate(memory: &mut [u8]) -> io::Result<()> {
        // SAFETY: the range is memory that is ours alone; its content does not change.
        let done = unsafe {
            madvise(
                memory.as_mut_ptr().cast(),
                memory.len(),
                Advice::LinuxPopulateWrite,
            )
        };
        Ok(done?)
    }

    /// Let the machine have it back; it is made anew when it is touched.
    pub fn give_back(&mut self) -> io::Result<()> {
        // SAFETY: the mapping is ours alone, private and anonymous: it reads as zero afterwards.
        Ok(unsafe { madvise(self.start, self.bytes, Advice::LinuxDontNeed) }?)
    }

    /// Its content.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is as long as this, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.bytes) }
    }

    /// The same, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else looks into it.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.bytes) }
    }
}

impl Drop for Warm {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and nobody looks into it.
        let _ = unsafe { munmap(self.start, self.bytes) };
    }
}

/// Copying memory, by one thread.
pub fn copy_mib_s() -> f64 {
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

/// Loopback TCP, by iperf3.
pub fn tcp_mib_s(connections: u32) -> Result<f64, String> {
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
