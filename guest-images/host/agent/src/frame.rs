//! The frame: 16 bytes of header, little-endian, then the payload.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | kind |
//! | 2 | 2 | zero |
//! | 4 | 4 | channel: one command |
//! | 8 | 4 | payload length, at most 64 KiB |
//! | 12 | 4 | CRC-32C of bytes 0..12 and the payload |

use std::io::{self, Read, Write};

/// The version written and the only one read.
pub const VERSION: u8 = 1;
/// Longest payload.
pub const PAYLOAD_LIMIT_BYTES: usize = 64 << 10;
/// Size of the header.
pub const HEADER_BYTES: usize = 16;

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To the agent: run a command on this channel ([`crate::Exec`]).
    Exec,
    /// To the agent: bytes for the command's standard input; empty closes it.
    Input,
    /// To the agent: kill the command.
    Kill,
    /// From the agent: this many bytes (u64) of input were taken.
    Taken,
    /// From the agent: bytes of the command's standard output.
    Output,
    /// From the agent: bytes of its standard error.
    Error,
    /// From the agent: it ended ([`crate::Ended`]); the channel is free.
    Exit,
    /// To the agent: say [`Kind::Pong`]. Also how both sides find out that the other listens.
    Ping,
    /// From the agent.
    Pong,
}

const KINDS: [Kind; 9] = [
    Kind::Exec,
    Kind::Input,
    Kind::Kill,
    Kind::Taken,
    Kind::Output,
    Kind::Error,
    Kind::Exit,
    Kind::Ping,
    Kind::Pong,
];

/// One message on one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it says.
    pub kind: Kind,
    /// Which command it belongs to.
    pub channel: u32,
    /// At most [`PAYLOAD_LIMIT_BYTES`].
    pub payload: Vec<u8>,
}

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The port failed or was closed.
    #[error("cannot read or write the agent's port: {0}")]
    Io(#[from] io::Error),
    /// The peer speaks another version.
    #[error(
        "the agent's port speaks frame version {0}, this side speaks {VERSION}; rebuild the template"
    )]
    Version(u8),
    /// An unknown kind of frame.
    #[error("unknown kind of frame {0} on the agent's port")]
    Kind(u8),
    /// A length beyond the limit.
    #[error("a frame of {0} bytes on the agent's port; the limit is {PAYLOAD_LIMIT_BYTES}")]
    Length(usize),
    /// The bytes were damaged.
    #[error("a damaged frame on the agent's port")]
    Checksum,
}

impl Frame {
    /// A frame; `payload` must be within the limit, which [`Frame::write`] checks.
    pub fn new(kind: Kind, channel: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            kind,
            channel,
            payload: payload.into(),
        }
    }

    /// Writes the frame in one call, so that frames of several threads do not mix.
    pub fn write(&self, to: &mut impl Write) -> Result<(), FrameError> {
        if self.payload.len() > PAYLOAD_LIMIT_BYTES {
            return Err(FrameError::Length(self.payload.len()));
        }
        let kind = KINDS
            .iter()
            .position(|&kind| kind == self.kind)
            .unwrap_or_default();
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.payload.len());
        bytes.extend([VERSION, kind as u8, 0, 0]);
        bytes.extend(self.channel.to_le_bytes());
        bytes.extend((self.payload.len() as u32).to_le_bytes());
        let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes), &self.payload);
        bytes.extend(sum.to_le_bytes());
        bytes.extend(&self.payload);
        to.write_all(&bytes)?;
        to.flush()?;
        Ok(())
    }

    /// Reads one frame.
    pub fn read(from: &mut impl Read) -> Result<Self, FrameError> {
        let mut header = [0; HEADER_BYTES];
        from.read_exact(&mut header)?;
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        if header[0] != VERSION {
            return Err(FrameError::Version(header[0]));
        }
        let kind = *KINDS
            .get(header[1] as usize)
            .ok_or(FrameError::Kind(header[1]))?;
        let length = word(8) as usize;
        if length > PAYLOAD_LIMIT_BYTES {
            return Err(FrameError::Length(length));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        if crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &payload) != word(12) {
            return Err(FrameError::Checksum);
        }
        Ok(Self {
            kind,
            channel: word(4),
            payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(kind in 0..KINDS.len(), channel: u32, payload in prop::collection::vec(any::<u8>(), 0..2000)) {
            let frame = Frame::new(KINDS[kind], channel, payload);
            let mut bytes = Vec::new();
            frame.write(&mut bytes).unwrap();
            prop_assert_eq!(Frame::read(&mut &bytes[..]).unwrap(), frame);
        }

        #[test]
        fn a_damaged_frame_is_refused(payload in prop::collection::vec(any::<u8>(), 1..200), at: prop::sample::Index, bit in 0..8u8) {
            let mut bytes = Vec::new();
            Frame::new(Kind::Output, 7, payload).write(&mut bytes).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(Frame::read(&mut &bytes[..]).is_err());
        }

        #[test]
        fn noise_is_refused_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Frame::read(&mut &bytes[..]);
        }
    }

    #[test]
    fn too_long_a_payload_is_refused_before_it_is_sent() {
        let frame = Frame::new(Kind::Input, 1, vec![0; PAYLOAD_LIMIT_BYTES + 1]);
        assert!(matches!(
            frame.write(&mut Vec::new()),
            Err(FrameError::Length(_))
        ));
    }
}
