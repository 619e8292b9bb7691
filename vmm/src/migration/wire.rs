//! Frames of the migration protocol, version 1. docs/formats.md has the bytes.
//!
//! Every frame begins with a header of 24 bytes with a checksum of its own. Control frames
//! are followed by a payload with a checksum; page frames by a table of runs with a checksum
//! and then the pages themselves, whose integrity is TCP's, TLS's and `--verify`'s: a page of
//! a running guest may change between checksum and sending.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shared_storage::image::ImageIdentity;
use storage_core::record::{Holder, LeaseRecord};
use vmm_core::compat::CpuidLeaf;

use super::fault::{self, Moment};
use crate::codec;

/// Version of the protocol.
pub const VERSION: u16 = 1;
const MAGIC: u32 = u32::from_le_bytes(*b"GWMG");
const HEADER_BYTES: usize = 24;
/// Longest payload of a control frame: the state of a machine with many processors.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 20;
/// What most control frames fit in.
const USUAL_BYTES: usize = 64 << 10;
/// Most runs of one page frame.
pub const RUNS_MAX: usize = 512;
/// Bytes of one run in the table.
const RUN_BYTES: usize = 12;
/// Most bytes of pages of one frame.
pub const PAGES_BYTES_MAX: u64 = 4 << 20;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// Source: this is who wants to move.
    Hello = 1,
    /// Target: it fits, and is built.
    Accept = 2,
    /// Target: it does not fit.
    Refuse = 3,
    /// Source: all pages of this round are under way.
    Round = 4,
    /// Target: they have all arrived.
    RoundDone = 5,
    /// Source: the guest stands still; this is its state.
    State = 6,
    /// Target: everything that can fail is done.
    Ready = 7,
    /// Source: the guest is yours.
    Commit = 8,
    /// Target: it runs.
    Running = 9,
    /// Source: never mind.
    Abort = 10,
    /// Source: what is known of the state before the guest stands still.
    Draft = 11,
    /// Data connection: this is whose I am.
    Join = 20,
    /// Data connection, or control connection once the guest stands still: pages follow.
    Pages = 21,
    /// The same: these pages are zero.
    Zero = 22,
    /// Data connection: no more pages in this round.
    End = 23,
}

impl Kind {
    fn from_number(number: u16) -> Option<Self> {
        use Kind::{
            Abort, Accept, Commit, Draft, End, Hello, Join, Pages, Ready, Refuse, Round, RoundDone,
            Running, State, Zero,
        };
        [
            Hello, Accept, Refuse, Round, RoundDone, State, Ready, Commit, Running, Abort, Draft,
            Join, Pages, Zero, End,
        ]
        .into_iter()
        .find(|kind| *kind as u16 == number)
    }
}

/// Binds the connections of one migration together.
pub type Token = [u8; 16];

/// The source's offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The guest's spec as TOML: its optional fields need a format that names fields.
    pub spec: String,
    /// Layout of the machine state that will come.
    pub state_version: u16,
    /// What the guest's processors were shown of their features.
    pub cpuid: Vec<CpuidLeaf>,
    /// The lease as the source holds it; none without a datastore.
    pub lease: Option<LeaseRecord>,
    /// What the guest's disks look like, in the order of the spec.
    pub disks: Vec<ImageIdentity>,
    /// Data connections that will come.
    pub connections: u32,
    /// For their [`Kind::Join`].
    pub token: Token,
    /// Memory will be compared.
    pub verify: bool,
    /// Nothing will move: the source wants to know whether it fits, and how fast it would be.
    pub dry_run: bool,
}

/// The target's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// Who gets the lease; none without a datastore.
    pub holder: Option<Holder>,
    /// How long copying a machine's state and pouring it in takes here, in microseconds.
    pub state_us: u64,
}

/// The source's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateFrame {
    /// The machine, encoded by [`crate::codec`].
    #[serde(with = "whole")]
    pub machine: Vec<u8>,
    /// An operator has paused the guest: it stands still there, too.
    pub paused: bool,
    /// Hash of all guest memory, when it is to be compared.
    pub memory_hash: Option<u64>,
}

/// Bytes as bytes, not as a list of numbers: the same on the wire, and a tenth of the time.
mod whole {
    use std::fmt;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        struct Whole;
        impl Visitor<'_> for Whole {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }

            fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }
        from.deserialize_byte_buf(Whole)
    }
}

/// The target's word that everything that can fail is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Memory was compared, and is equal.
    pub verified: bool,
}

/// The target's word that the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// From the arrival of the commit until the processors ran, in microseconds.
    pub took_us: u64,
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// Bytes of the payload or table.
    pub payload_bytes: u32,
    /// Checksum of the payload or table.
    pub checksum: u32,
    /// Number of the round, where that means something.
    pub round: u32,
}

impl Header {
    fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6..8].copy_from_slice(&(self.kind as u16).to_le_bytes());
        bytes[8..12].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.checksum.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.round.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[..20]);
        bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> io::Result<Self> {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if word(0) != MAGIC {
            return Err(invalid("this is no migration"));
        }
        if word(20) != crc32c::crc32c(&bytes[..20]) {
            return Err(invalid("a frame's header is damaged"));
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if version != VERSION {
            return Err(invalid(&format!(
                "it speaks version {version} of the protocol, this program {VERSION}; \
                 use the same release on both sides"
            )));
        }
        let number = u16::from_le_bytes([bytes[6], bytes[7]]);
        let kind = Kind::from_number(number)
            .ok_or_else(|| invalid(&format!("frames of kind {number} are not known")))?;
        Ok(Self {
            kind,
            payload_bytes: word(8),
            checksum: word(12),
            round: word(16),
        })
    }
}

/// A stretch of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u32,
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// Header and payload of a control frame, ready to be written.
pub fn control(kind: Kind, round: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        kind,
        payload_bytes: payload.len() as u32,
        checksum: crc32c::crc32c(payload),
        round,
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// Header and table of a page frame; the pages follow it.
pub fn page_table(kind: Kind, round: u32, runs: &[Run]) -> Vec<u8> {
    let mut table = Vec::with_capacity(runs.len() * RUN_BYTES);
    for run in runs {
        table.extend_from_slice(&run.address.to_le_bytes());
        table.extend_from_slice(&run.bytes.to_le_bytes());
    }
    control(kind, round, &table)
}

/// Write a control frame with a structured payload.
pub fn send<T: Serialize>(
    to: &mut dyn Write,
    kind: Kind,
    round: u32,
    payload: &T,
) -> io::Result<()> {
    let payload = codec::encode(payload)?;
    fault::pass(Moment::Before, kind, round)?;
    to.write_all(&control(kind, round, &payload))?;
    to.flush()?;
    fault::pass(Moment::After, kind, round)
}

/// Read a header and the payload or table that belongs to it.
pub fn receive(from: &mut dyn Read) -> io::Result<(Header, Vec<u8>)> {
    let mut header = [0; HEADER_BYTES];
    from.read_exact(&mut header)?;
    let header = Header::decode(&header)?;
    let bytes = header.payload_bytes as usize;
    let limit = match header.kind {
        Kind::Pages | Kind::Zero => RUNS_MAX * RUN_BYTES,
        _ => PAYLOAD_BYTES_MAX,
    };
    if bytes > limit {
        return Err(invalid(&format!(
            "a frame of {bytes} bytes is longer than {limit}"
        )));
    }
    // Grows with what really arrives, so that a liar cannot make us reserve memory; what is usual
    // is read in one go.
    let mut payload = Vec::with_capacity(bytes.min(USUAL_BYTES));
    from.take(bytes as u64).read_to_end(&mut payload)?;
    if payload.len() != bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if crc32c::crc32c(&payload) != header.checksum {
        return Err(invalid("a frame's payload is damaged"));
    }
    fault::pass(Moment::Upon, header.kind, header.round)?;
    Ok((header, payload))
}

/// Decode the payload of a control frame.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> io::Result<T> {
    codec::decode(payload)
}

/// The runs of a page frame: whole pages, not too many bytes in all.
pub fn runs(table: &[u8], page_bytes: u64) -> io::Result<Vec<Run>> {
    if !table.len().is_multiple_of(RUN_BYTES) {
        return Err(invalid("a table of pages is cut short"));
    }
    let runs: Vec<Run> = table
        .chunks_exact(RUN_BYTES)
        .map(|entry| {
            let (address, bytes) = entry.split_at(8);
            Run {
                address: u64::from_le_bytes(address.try_into().unwrap_or_default()),
                bytes: u32::from_le_bytes(bytes.try_into().unwrap_or_default()),
            }
        })
        .collect();
    let whole = |run: &Run| {
        run.bytes > 0
            && run.address.is_multiple_of(page_bytes)
            && u64::from(run.bytes).is_multiple_of(page_bytes)
    };
    if !runs.iter().all(whole) {
        return Err(invalid("a run is not made of whole pages"));
    }
    let total: u64 = runs.iter().map(|run| u64::from(run.bytes)).sum();
    if total > PAGES_BYTES_MAX {
        return Err(invalid("a frame carries too many pages"));
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_sent_is_received() {
        let accept = Accept {
            holder: None,
            state_us: 1500,
        };
        let mut bytes = Vec::new();
        send(&mut bytes, Kind::Accept, 7, &accept).unwrap();
        let (header, payload) = receive(&mut &bytes[..]).unwrap();
        assert_eq!((header.kind, header.round), (Kind::Accept, 7));
        assert_eq!(decode::<Accept>(&payload).unwrap(), accept);
    }

    #[test]
    fn bytes_as_a_whole_are_what_a_list_of_numbers_is_on_the_wire() {
        let frame = StateFrame {
            machine: (0..=255).collect(),
            paused: true,
            memory_hash: Some(7),
        };
        let bytes = codec::encode(&frame).unwrap();
        let listed = (frame.machine.clone(), frame.paused, frame.memory_hash);
        assert_eq!(bytes, codec::encode(&listed).unwrap());
        assert_eq!(decode::<StateFrame>(&bytes).unwrap(), frame);
        // A length that nothing follows costs no memory.
        decode::<StateFrame>(&[0xfc, 0xff, 0xff, 0xff, 0x7f]).unwrap_err();
    }

    #[test]
    fn another_version_is_refused_in_words() {
        let mut bytes = control(Kind::Round, 1, &[]);
        bytes[4] = 9;
        let checksum = crc32c::crc32c(&bytes[..20]).to_le_bytes();
        bytes[20..24].copy_from_slice(&checksum);
        let error = receive(&mut &bytes[..]).unwrap_err().to_string();
        assert!(error.contains("version 9"), "{error}");
    }

    proptest! {
        #[test]
        fn runs_come_back(pages in prop::collection::vec((0u64..1 << 40, 1u32..3), 0..RUNS_MAX)) {
            let sent: Vec<Run> = pages
                .iter()
                .map(|(page, n)| Run { address: page * 4096, bytes: n * 4096 })
                .collect();
            let frame = page_table(Kind::Pages, 1, &sent);
            let (header, table) = receive(&mut &frame[..]).unwrap();
            prop_assert_eq!(header.kind, Kind::Pages);
            prop_assert_eq!(runs(&table, 4096).unwrap(), sent);
        }

        #[test]
        fn no_stream_panics(bytes: Vec<u8>) {
            let _ = receive(&mut &bytes[..]);
            let _ = runs(&bytes, 4096);
        }

        #[test]
        fn damage_is_noticed(at in 0usize..64, flip in 1u8..) {
            let mut bytes = control(Kind::State, 3, &[0x5a; 40]);
            bytes[at] ^= flip;
            prop_assert!(receive(&mut &bytes[..]).is_err());
        }
    }
}
