//! The private networks: a learning Ethernet switch on Unix sockets, whose cables can be cut.
//!
//! QEMU's `-netdev stream` speaks a length (32 bits, big-endian) before each frame. A cut cable
//! loses frames silently and leaves the carrier up, as a failed switch in the middle would.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::Result;
use crate::error::During;

/// Longest frame taken from a host: a jumbo frame with offloads switched off stays far below.
const FRAME_LIMIT_BYTES: usize = 128 << 10;
/// What may wait for a host that does not read (it is frozen); more is dropped, as by a switch.
const QUEUE_LIMIT_BYTES: usize = 4 << 20;
/// What is read from a host at a time.
const READ_BYTES: usize = 16 << 10;
/// How often the thread looks whether the lab has ended.
const IDLE_WAKE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// One cable: its two cuts and its counters.
#[derive(Debug, Default)]
pub struct CableState {
    /// Frames that the host sends are lost.
    pub from_host_cut: AtomicBool,
    /// Frames for the host are lost.
    pub to_host_cut: AtomicBool,
    /// Frames carried in both directions.
    pub carried: AtomicU64,
    /// Frames lost in both directions, by a cut or a full queue.
    pub lost: AtomicU64,
    /// Reverse ARP requests from the host: a switch learns from them who lives there now.
    pub reverse_arps: AtomicU64,
    /// ARP requests from the host whose sender asks for its own address.
    pub gratuitous_arps: AtomicU64,
}

impl CableState {
    /// Counts what the host sends to tell where somebody lives (RFC 903, RFC 5227 §3).
    fn note_announcement(&self, frame: &[u8]) {
        let counter = match (frame.get(12..14), frame.get(28..32), frame.get(38..42)) {
            (Some([0x80, 0x35]), ..) => &self.reverse_arps,
            (Some([0x08, 0x06]), Some(sender), Some(target)) if sender == target => {
                &self.gratuitous_arps
            }
            _ => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Its cuts in words.
    pub fn describe(&self) -> &'static str {
        match (
            self.from_host_cut.load(Ordering::Relaxed),
            self.to_host_cut.load(Ordering::Relaxed),
        ) {
            (false, false) => "whole",
            (true, false) => "cut from host",
            (false, true) => "cut to host",
            (true, true) => "cut",
        }
    }
}

/// A switch, on a thread of its own until dropped.
#[derive(Debug)]
pub struct Switch {
    stop: Arc<AtomicBool>,
    cables: Vec<(PathBuf, Arc<CableState>)>,
}

struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    waiting: VecDeque<u8>,
}

struct Port {
    listener: UnixListener,
    cable: Arc<CableState>,
    connection: Option<Connection>,
}

impl Switch {
    /// Opens a port for each socket path and starts switching.
    pub fn start(sockets: &[PathBuf]) -> Result<Self> {
        let mut ports = Vec::new();
        let mut cables = Vec::new();
        for path in sockets {
            let listener = UnixListener::bind(path).during("listen on", path)?;
            listener.set_nonblocking(true).during("set up", path)?;
            let cable = Arc::new(CableState::default());
            cables.push((path.clone(), cable.clone()));
            ports.push(Port {
                listener,
                cable,
                connection: None,
            });
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        thread::spawn(move || run(ports, &stopped));
        Ok(Self { stop, cables })
    }

    /// The cable at a socket path given to [`Switch::start`].
    pub fn cable(&self, path: &Path) -> Option<Arc<CableState>> {
        self.cables
            .iter()
            .find(|(known, _)| known == path)
            .map(|(_, cable)| cable.clone())
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn run(mut ports: Vec<Port>, stop: &AtomicBool) {
    let mut learned: HashMap<[u8; 6], usize> = HashMap::new();
    while !stop.load(Ordering::Relaxed) {
        for number in wait(&ports) {
            ports[number].accept();
            for frame in ports[number].receive() {
                forward(&mut ports, &mut learned, number, &frame);
            }
        }
        for port in &mut ports {
            port.flush();
        }
    }
}

/// Waits for something to do and names the ports to look at.
fn wait(ports: &[Port]) -> Vec<usize> {
    let mut owners = Vec::new();
    let mut descriptors = Vec::new();
    for (number, port) in ports.iter().enumerate() {
        owners.push(number);
        descriptors.push(PollFd::from_borrowed_fd(
            port.listener.as_fd(),
            PollFlags::IN,
        ));
        if let Some(connection) = &port.connection {
            let writing = if connection.waiting.is_empty() {
                PollFlags::empty()
            } else {
                PollFlags::OUT
            };
            owners.push(number);
            descriptors.push(PollFd::from_borrowed_fd(
                connection.stream.as_fd(),
                PollFlags::IN | writing,
            ));
        }
    }
    if poll(&mut descriptors, Some(&IDLE_WAKE)).is_err() {
        return Vec::new();
    }
    let mut ready: Vec<usize> = descriptors
        .iter()
        .zip(owners)
        .filter(|(fd, _)| !fd.revents().is_empty())
        .map(|(_, owner)| owner)
        .collect();
    ready.dedup();
    ready
}

fn forward(ports: &mut [Port], learned: &mut HashMap<[u8; 6], usize>, from: usize, frame: &[u8]) {
    let cable = &ports[from].cable;
    if cable.from_host_cut.load(Ordering::Relaxed) {
        cable.lost.fetch_add(1, Ordering::Relaxed);
        return;
    }
    cable.note_announcement(frame);
    let (Some(&to), Some(&sender)) = (
        frame.first_chunk::<6>(),
        frame.get(6..).and_then(|rest| rest.first_chunk::<6>()),
    ) else {
        return;
    };
    // Bit 0 of the first byte: a group address, which no single port owns.
    if sender[0] & 1 == 0 {
        learned.insert(sender, from);
    }
    let only = if to[0] & 1 == 0 {
        learned.get(&to).copied()
    } else {
        None
    };
    for (number, port) in ports.iter_mut().enumerate() {
        if number != from && only.is_none_or(|only| only == number) {
            port.send(frame);
        }
    }
}

impl Port {
    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                // A new connection is the host started anew: it takes the cable over.
                self.connection = Some(Connection {
                    stream,
                    received: Vec::new(),
                    waiting: VecDeque::new(),
                });
            }
        }
    }

    /// Reads what there is, and cuts it into frames.
    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let Some(connection) = &mut self.connection else {
            return frames;
        };
        let mut buffer = [0; READ_BYTES];
        match connection.stream.read(&mut buffer) {
            Ok(0) => self.connection = None,
            Ok(bytes) => {
                connection.received.extend(&buffer[..bytes]);
                let mut at = 0;
                while let Some((&length, rest)) = connection.received[at..].split_first_chunk::<4>()
                {
                    let length = u32::from_be_bytes(length) as usize;
                    if length > FRAME_LIMIT_BYTES {
                        self.connection = None;
                        return frames;
                    }
                    let Some(frame) = rest.get(..length) else {
                        break;
                    };
                    frames.push(frame.to_vec());
                    at += 4 + length;
                }
                connection.received.drain(..at);
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.connection = None,
        }
        frames
    }

    fn send(&mut self, frame: &[u8]) {
        let cut = self.cable.to_host_cut.load(Ordering::Relaxed);
        match &mut self.connection {
            Some(connection)
                if !cut && connection.waiting.len() + frame.len() + 4 <= QUEUE_LIMIT_BYTES =>
            {
                connection
                    .waiting
                    .extend((frame.len() as u32).to_be_bytes());
                connection.waiting.extend(frame);
                self.cable.carried.fetch_add(1, Ordering::Relaxed);
            }
            _ => {
                self.cable.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn flush(&mut self) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        while !connection.waiting.is_empty() {
            match connection.stream.write(connection.waiting.as_slices().0) {
                Ok(bytes) => drop(connection.waiting.drain(..bytes)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.connection = None;
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn frame(to: u8, from: u8, text: &[u8]) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from];
        bytes.extend(text);
        bytes
    }

    struct Plugged(UnixStream);

    impl Plugged {
        fn send(&mut self, frame: &[u8]) {
            self.0
                .write_all(&(frame.len() as u32).to_be_bytes())
                .unwrap();
            self.0.write_all(frame).unwrap();
        }

        fn receive(&mut self) -> Vec<u8> {
            self.0
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            let mut length = [0; 4];
            self.0.read_exact(&mut length).unwrap();
            let mut frame = vec![0; u32::from_be_bytes(length) as usize];
            self.0.read_exact(&mut frame).unwrap();
            frame
        }
    }

    fn three() -> (tempfile::TempDir, Switch, Vec<PathBuf>, Vec<Plugged>) {
        let directory = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (1..=3)
            .map(|number| directory.path().join(number.to_string()))
            .collect();
        let switch = Switch::start(&paths).unwrap();
        let mut plugged: Vec<_> = paths
            .iter()
            .map(|path| Plugged(UnixStream::connect(path).unwrap()))
            .collect();
        // Each says who it is, and the others hear it: the switch knows all afterwards.
        for number in 0..3 {
            // The unknown address 9 is flooded; what the switch accepted late it may miss.
            loop {
                plugged[number].send(&frame(9, number as u8 + 1, b"here"));
                let others: Vec<usize> = (0..3).filter(|&other| other != number).collect();
                let heard = others.iter().all(|&other| {
                    plugged[other]
                        .0
                        .set_read_timeout(Some(Duration::from_millis(200)))
                        .unwrap();
                    let mut bytes = [0; 20];
                    plugged[other].0.read_exact(&mut bytes).is_ok()
                });
                if heard {
                    break;
                }
            }
        }
        (directory, switch, paths, plugged)
    }

    #[test]
    fn known_addresses_get_their_frames_alone_and_groups_reach_all() {
        let (_directory, _switch, _paths, mut hosts) = three();
        hosts[0].send(&frame(2, 1, b"for two"));
        assert_eq!(hosts[1].receive(), frame(2, 1, b"for two"));
        let mut broadcast = frame(0, 1, b"for all");
        broadcast[..6].fill(0xff);
        hosts[0].send(&broadcast);
        assert_eq!(hosts[1].receive(), broadcast);
        assert_eq!(
            hosts[2].receive(),
            broadcast,
            "and nothing of what was for two"
        );
    }

    #[test]
    fn announcements_are_counted_where_they_come_from() {
        let cable = CableState::default();
        let arp = |ethertype: [u8; 2], sender: u8, target: u8| {
            let mut bytes = frame(0, 1, &ethertype);
            bytes.resize(60, 0);
            (bytes[31], bytes[41]) = (sender, target);
            bytes
        };
        cable.note_announcement(&arp([0x80, 0x35], 0, 0));
        cable.note_announcement(&arp([0x08, 0x06], 7, 7));
        cable.note_announcement(&arp([0x08, 0x06], 7, 8));
        cable.note_announcement(&arp([0x08, 0x00], 7, 7));
        cable.note_announcement(&[0; 13]);
        let counted = [&cable.reverse_arps, &cable.gratuitous_arps];
        assert_eq!(counted.map(|count| count.load(Ordering::Relaxed)), [1, 1]);
    }

    #[test]
    fn a_cut_loses_one_direction_and_heals() {
        let (_directory, switch, paths, mut hosts) = three();
        let cable = switch.cable(&paths[0]).unwrap();
        cable.from_host_cut.store(true, Ordering::Relaxed);
        hosts[0].send(&frame(2, 1, b"lost"));
        hosts[1].send(&frame(1, 2, b"still arrives"));
        assert_eq!(hosts[0].receive(), frame(1, 2, b"still arrives"));
        cable.from_host_cut.store(false, Ordering::Relaxed);
        hosts[0].send(&frame(2, 1, b"healed"));
        assert_eq!(hosts[1].receive(), frame(2, 1, b"healed"));
    }

    #[test]
    fn a_host_that_does_not_read_stops_nobody() {
        let (_directory, _switch, _paths, mut hosts) = three();
        let big = frame(3, 1, &vec![7; 60_000]);
        for _ in 0..200 {
            hosts[0].send(&big);
        }
        hosts[0].send(&frame(2, 1, b"goes on"));
        assert_eq!(hosts[1].receive(), frame(2, 1, b"goes on"));
    }
}
