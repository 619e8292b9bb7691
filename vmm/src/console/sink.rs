//! Where the guest's output goes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;

/// Output that a client finds when it connects.
const KEPT_BYTES: usize = 16 << 10;

/// A file or terminal.
pub struct FileSink(pub File);

impl Write for FileSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whoever is connected. A client that does not read loses output; it never stops the guest.
#[derive(Default)]
pub struct ClientSink {
    clients: Vec<UnixStream>,
    kept: VecDeque<u8>,
}

impl ClientSink {
    /// Output goes to `client` too, which must not block; first what it missed.
    pub fn connect(&mut self, mut client: UnixStream) {
        let kept = self.kept.make_contiguous();
        // What does not fit into the socket's buffer is lost.
        let _ = client.write(kept);
        self.clients.push(client);
    }

    /// A client has gone; they are counted in the order in which they came.
    pub fn disconnect(&mut self, client: usize) {
        self.clients.remove(client);
    }
}

impl Write for ClientSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let over = (self.kept.len() + bytes.len()).saturating_sub(KEPT_BYTES);
        self.kept.drain(..over.min(self.kept.len()));
        let tail = bytes.len().saturating_sub(KEPT_BYTES);
        self.kept.extend(&bytes[tail..]);
        for client in &mut self.clients {
            let _ = client.write(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_client_finds_the_last_output_and_never_stops_the_guest() {
        let mut sink = ClientSink::default();
        sink.write_all(&[b'x'; KEPT_BYTES]).unwrap();
        sink.write_all(b"login: ").unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        sink.connect(ours);
        sink.write_all(b"more").unwrap();
        let mut seen = vec![0; KEPT_BYTES + 4];
        theirs.read_exact(&mut seen).unwrap();
        assert!(seen.ends_with(b"login: more"));
        for _ in 0..1000 {
            sink.write_all(&[0; 4096]).unwrap();
        }
    }
}
