//! The two records on the datastore: a host's heartbeat and an epoch of a lease.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::codec::{Reader, Writer};
use crate::name::check_name;

/// A heartbeat file is exactly this long: one block, so that a rewrite is one write.
pub const HEARTBEAT_BYTES: usize = 4096;
/// A lease file is never longer than this.
pub const LEASE_BYTES_LIMIT: usize = 1024;

const HEARTBEAT_MAGIC: [u8; 4] = *b"GWHB";
const LEASE_MAGIC: [u8; 4] = *b"GWLS";
const VERSION: u16 = 1;

/// Why bytes are not the record they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Fewer bytes than the record needs.
    #[error("the {kind} record is cut short: {have} bytes of {need}")]
    Short {
        /// Which record.
        kind: &'static str,
        /// Bytes the record needs.
        need: usize,
        /// Bytes there are.
        have: usize,
    },
    /// Something else lies there.
    #[error("this is not a {kind} record")]
    Magic {
        /// Which record was expected.
        kind: &'static str,
    },
    /// The bytes changed after they were written.
    #[error("the {kind} record is damaged: its checksum does not match")]
    Checksum {
        /// Which record.
        kind: &'static str,
    },
    /// Written by another release.
    #[error("the {kind} record has version {found}, this release knows {known}: update it")]
    Version {
        /// Which record.
        kind: &'static str,
        /// Its version.
        found: u16,
        /// Ours.
        known: u16,
    },
    /// A field that makes no sense.
    #[error("the {kind} record is invalid at: {field}")]
    Field {
        /// Which record.
        kind: &'static str,
        /// Which field.
        field: &'static str,
    },
}

/// Which boot of a host: the kernel's boot id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Incarnation(#[serde(with = "hex")] pub [u8; 16]);

/// Sixteen bytes as people read them, where people do.
mod hex {
    use alloc::format;
    use alloc::string::String;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 16], to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() {
            to.serialize_str(&format!("{:032x}", u128::from_be_bytes(*bytes)))
        } else {
            bytes.serialize(to)
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 16], D::Error> {
        if !from.is_human_readable() {
            return <[u8; 16]>::deserialize(from);
        }
        let text = String::deserialize(from)?;
        let number = u128::from_str_radix(&text, 16)
            .ok()
            .filter(|_| text.len() == 32);
        let bytes = number.map(u128::to_be_bytes);
        bytes.ok_or_else(|| D::Error::custom("32 hexadecimal digits are needed"))
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&alloc::format!("{:032x}", u128::from_be_bytes(self.0)))
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who may act on a lease: one boot of a host, in one term of its heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// The host's name.
    pub host: String,
    /// Its boot.
    pub incarnation: Incarnation,
    /// The term of its hold (see [`crate::hold`]) in which it got the lease.
    pub term: u32,
}

impl Holder {
    /// Whether both are the same boot of the same host, in whatever term.
    pub fn same_boot(&self, other: &Self) -> bool {
        self.host == other.host && self.incarnation == other.incarnation
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host,
            incarnation,
            term,
        } = self;
        write!(f, "{host} (boot {incarnation:.8}, term {term})")
    }
}

/// The sign of life that a host rewrites in place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatRecord {
    /// The host.
    pub host: String,
    /// Its boot.
    pub incarnation: Incarnation,
    /// Grows with every heartbeat of an incarnation.
    pub counter: u64,
    /// The host's boottime clock when it was sent, in microseconds.
    pub sent_us: u64,
    /// The term of the host's hold when it was sent.
    pub term: u32,
    /// What the agent says about its host to all others; the meaning is the agent's.
    pub flags: u32,
    /// The process that wrote it.
    pub writer_pid: u32,
}

impl HeartbeatRecord {
    const KIND: &'static str = "heartbeat";

    /// The bytes of the file, padded to [`HEARTBEAT_BYTES`].
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(HEARTBEAT_MAGIC, VERSION);
        writer.bytes(&self.incarnation.0);
        writer.bytes(&self.counter.to_le_bytes());
        writer.bytes(&self.sent_us.to_le_bytes());
        writer.bytes(&self.term.to_le_bytes());
        writer.bytes(&self.flags.to_le_bytes());
        writer.bytes(&self.writer_pid.to_le_bytes());
        writer.text(&self.host);
        let mut bytes = writer.finish();
        bytes.resize(HEARTBEAT_BYTES, 0);
        bytes
    }

    /// The record in the bytes of the file.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::open(Self::KIND, HEARTBEAT_MAGIC, VERSION, bytes)?;
        let record = Self {
            incarnation: Incarnation(reader.array("incarnation")?),
            counter: u64::from_le_bytes(reader.array("counter")?),
            sent_us: u64::from_le_bytes(reader.array("sent_us")?),
            term: u32::from_le_bytes(reader.array("term")?),
            flags: u32::from_le_bytes(reader.array("flags")?),
            writer_pid: u32::from_le_bytes(reader.array("writer_pid")?),
            host: reader.text("host")?,
        };
        check_name(&record.host).map_err(|_| reader.bad("host"))?;
        reader.end()?;
        Ok(record)
    }
}

/// How an epoch came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grant {
    /// Nobody held the lease.
    Acquired,
    /// The holder before was gone.
    TakenOver,
    /// The holder's own deadline had passed; it came back before anybody else.
    Renewed,
    /// The holder before gave it to this one (the commit of a migration).
    HandedOver,
    /// The holder gave it up: nobody holds it.
    Released,
    /// An operator declared the holder gone: nobody holds it.
    ForcedFree,
}

impl Grant {
    const ALL: [Self; 6] = [
        Self::Acquired,
        Self::TakenOver,
        Self::Renewed,
        Self::HandedOver,
        Self::Released,
        Self::ForcedFree,
    ];

    fn code(self) -> u8 {
        Self::ALL
            .iter()
            .position(|grant| *grant == self)
            .unwrap_or_default() as u8
    }

    /// Whether an epoch of this kind names a holder.
    pub fn has_holder(self) -> bool {
        !matches!(self, Self::Released | Self::ForcedFree)
    }
}

/// One epoch of a lease. Written once, never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// The cluster it belongs to.
    #[serde(with = "hex")]
    pub cluster: [u8; 16],
    /// What is leased: the guest's name, or the leadership.
    pub subject: String,
    /// Grows by one with every change of any kind.
    pub epoch: u64,
    /// How it came to be.
    pub grant: Grant,
    /// Who may act; none when it is free.
    pub holder: Option<Holder>,
    /// The guest's disks must lie in files of this epoch or a later one before anybody runs
    /// it, so that late writes of earlier holders land nowhere. 0: no such need.
    pub fence: u64,
    /// Tells this record from one that another contender wrote for the same epoch.
    #[serde(with = "hex")]
    pub nonce: [u8; 16],
    /// Why, for people.
    pub note: String,
}

impl LeaseRecord {
    const KIND: &'static str = "lease";

    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(LEASE_MAGIC, VERSION);
        writer.bytes(&self.cluster);
        writer.bytes(&self.epoch.to_le_bytes());
        writer.bytes(&self.fence.to_le_bytes());
        writer.bytes(&self.nonce);
        writer.bytes(&[self.grant.code()]);
        writer.text(&self.subject);
        if let Some(holder) = &self.holder {
            writer.bytes(&holder.incarnation.0);
            writer.bytes(&holder.term.to_le_bytes());
            writer.text(&holder.host);
        }
        writer.text(&self.note);
        writer.finish()
    }

    /// The record in the bytes of the file.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::open(Self::KIND, LEASE_MAGIC, VERSION, bytes)?;
        let cluster = reader.array("cluster")?;
        let epoch = u64::from_le_bytes(reader.array("epoch")?);
        let fence = u64::from_le_bytes(reader.array("fence")?);
        let nonce = reader.array("nonce")?;
        let [code] = reader.array("grant")?;
        let grant = *Grant::ALL
            .get(usize::from(code))
            .ok_or(reader.bad("grant"))?;
        let subject = reader.text("subject")?;
        check_name(&subject).map_err(|_| reader.bad("subject"))?;
        let holder = grant
            .has_holder()
            .then(|| read_holder(&mut reader))
            .transpose()?;
        let note = reader.text("note")?;
        if epoch == 0 || fence > epoch {
            return Err(reader.bad("epoch"));
        }
        reader.end()?;
        Ok(Self {
            cluster,
            subject,
            epoch,
            grant,
            holder,
            fence,
            nonce,
            note,
        })
    }
}

fn read_holder(reader: &mut Reader<'_>) -> Result<Holder, RecordError> {
    let incarnation = Incarnation(reader.array("holder's incarnation")?);
    let term = u32::from_le_bytes(reader.array("holder's term")?);
    let host = reader.text("holder's host")?;
    check_name(&host).map_err(|_| reader.bad("holder's host"))?;
    Ok(Holder {
        host,
        incarnation,
        term,
    })
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn lease() -> LeaseRecord {
        LeaseRecord {
            cluster: [1; 16],
            subject: "web1".into(),
            epoch: 5,
            grant: Grant::TakenOver,
            holder: Some(Holder {
                host: "host-b".into(),
                incarnation: Incarnation([2; 16]),
                term: 3,
            }),
            fence: 5,
            nonce: [4; 16],
            note: "host-a was silent for 3.3 s".into(),
        }
    }

    fn heartbeat() -> HeartbeatRecord {
        HeartbeatRecord {
            host: "host-a".into(),
            incarnation: Incarnation([7; 16]),
            counter: 12,
            sent_us: 34,
            term: 1,
            flags: 2,
            writer_pid: 99,
        }
    }

    #[test]
    fn records_survive_the_trip() {
        assert_eq!(LeaseRecord::decode(&lease().encode()), Ok(lease()));
        let free = LeaseRecord {
            grant: Grant::Released,
            holder: None,
            ..lease()
        };
        assert_eq!(LeaseRecord::decode(&free.encode()), Ok(free));
        assert_eq!(heartbeat().encode().len(), HEARTBEAT_BYTES);
        assert_eq!(
            HeartbeatRecord::decode(&heartbeat().encode()),
            Ok(heartbeat())
        );
    }

    #[test]
    fn the_longest_lease_fits_its_limit() {
        let long = String::from_iter(['x'; 63]);
        let holder = Holder {
            host: long.clone(),
            incarnation: Incarnation([2; 16]),
            term: 3,
        };
        let note = String::from_iter(['é'; 500]);
        let record = LeaseRecord {
            subject: long,
            holder: Some(holder),
            note,
            ..lease()
        };
        assert!(record.encode().len() <= LEASE_BYTES_LIMIT);
        assert_eq!(
            LeaseRecord::decode(&record.encode())
                .unwrap()
                .note
                .chars()
                .count(),
            127
        );
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let good = lease().encode();
        assert!(matches!(
            LeaseRecord::decode(&good[..20]),
            Err(RecordError::Short { have: 20, .. })
        ));
        assert!(matches!(
            LeaseRecord::decode(&[]),
            Err(RecordError::Short { have: 0, .. })
        ));
        assert!(matches!(
            LeaseRecord::decode(&[0; 64]),
            Err(RecordError::Magic { .. })
        ));
        assert_eq!(
            HeartbeatRecord::decode(&good).unwrap_err(),
            RecordError::Magic { kind: "heartbeat" }
        );
        let mut newer = good.clone();
        newer[4] = 9;
        assert!(matches!(
            LeaseRecord::decode(&newer),
            Err(RecordError::Checksum { .. })
        ));
        let end = newer.len() - 4;
        let sum = crc32c::crc32c(&newer[..end]).to_le_bytes();
        newer[end..].copy_from_slice(&sum);
        assert!(matches!(
            LeaseRecord::decode(&newer),
            Err(RecordError::Version {
                found: 9,
                known: 1,
                ..
            })
        ));
        let nameless = LeaseRecord {
            subject: "../x".into(),
            ..lease()
        };
        assert_eq!(
            LeaseRecord::decode(&nameless.encode()),
            Err(RecordError::Field {
                kind: "lease",
                field: "subject"
            })
        );
    }

    proptest! {
        #[test]
        fn no_flipped_bit_goes_unnoticed(at in 0..8 * 100_usize) {
            let mut bytes = lease().encode();
            prop_assume!(at / 8 < bytes.len());
            bytes[at / 8] ^= 1 << (at % 8);
            prop_assert!(LeaseRecord::decode(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_refused_or_survive_the_trip(
            body in proptest::collection::vec(any::<u8>(), 0..200), lease in any::<bool>(),
        ) {
            // A valid envelope around a random body, so that the fields are reached.
            let mut writer = Writer::new(if lease { LEASE_MAGIC } else { HEARTBEAT_MAGIC }, VERSION);
            writer.bytes(&body);
            let bytes = writer.finish();
            if let Ok(record) = LeaseRecord::decode(&bytes) {
                prop_assert_eq!(record.encode(), bytes.clone());
            }
            if let Ok(record) = HeartbeatRecord::decode(&bytes) {
                let mut padded = vec![0; HEARTBEAT_BYTES];
                padded[..bytes.len()].copy_from_slice(&bytes);
                prop_assert_eq!(record.encode(), padded);
            }
        }
    }
}
