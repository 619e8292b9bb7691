//! The envelope of every record: magic, version, length, body, checksum.
//!
//! ```text
//! 0  4  magic       4  2  version       6  2  length of the body
//! 8  n  body        8+n  4  CRC-32C of everything before it
//! ```
//! Integers are little-endian; a text is one length byte and its UTF-8 bytes.

use alloc::string::String;
use alloc::vec::Vec;

use crate::record::RecordError;

const HEADER: usize = 8;
const CHECKSUM: usize = 4;

/// Builds a record.
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new(magic: [u8; 4], version: u16) -> Self {
        let mut bytes = Vec::from(magic);
        bytes.extend(version.to_le_bytes());
        bytes.extend([0, 0]);
        Self(bytes)
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// Appends a text, cut to what a length byte can say.
    pub(crate) fn text(&mut self, text: &str) {
        let mut end = text.len().min(usize::from(u8::MAX));
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.0.push(end as u8);
        self.0.extend(&text.as_bytes()[..end]);
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        let body = (self.0.len() - HEADER) as u16;
        self.0[6..8].copy_from_slice(&body.to_le_bytes());
        self.0.extend(crc32c::crc32c(&self.0).to_le_bytes());
        self.0
    }
}

/// Takes a record apart.
pub(crate) struct Reader<'a> {
    kind: &'static str,
    body: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Checks the envelope. Bytes after the record are ignored: files are padded.
    pub(crate) fn open(
        kind: &'static str,
        magic: [u8; 4],
        version: u16,
        bytes: &'a [u8],
    ) -> Result<Self, RecordError> {
        let (header, rest) = bytes.split_at_checked(HEADER).ok_or(RecordError::Short {
            kind,
            need: HEADER + CHECKSUM,
            have: bytes.len(),
        })?;
        if header[..4] != magic {
            return Err(RecordError::Magic { kind });
        }
        let body_len = usize::from(u16::from_le_bytes([header[6], header[7]]));
        let need = HEADER + body_len + CHECKSUM;
        if rest.len() < body_len + CHECKSUM {
            return Err(RecordError::Short {
                kind,
                need,
                have: bytes.len(),
            });
        }
        let (summed, stored) = bytes[..need].split_at(HEADER + body_len);
        if crc32c::crc32c(summed).to_le_bytes() != stored {
            return Err(RecordError::Checksum { kind });
        }
        // After the checksum: a damaged version number is damage, not a newer release.
        let found = u16::from_le_bytes([header[4], header[5]]);
        if found != version {
            return Err(RecordError::Version {
                kind,
                found,
                known: version,
            });
        }
        Ok(Self {
            kind,
            body: &rest[..body_len],
        })
    }

    pub(crate) fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], RecordError> {
        let (head, rest) = self.body.split_first_chunk::<N>().ok_or(self.bad(field))?;
        self.body = rest;
        Ok(*head)
    }

    pub(crate) fn text(&mut self, field: &'static str) -> Result<String, RecordError> {
        let [len] = self.array(field)?;
        let (text, rest) = self
            .body
            .split_at_checked(usize::from(len))
            .ok_or(self.bad(field))?;
        self.body = rest;
        Ok(String::from(
            core::str::from_utf8(text).map_err(|_| self.bad(field))?,
        ))
    }

    pub(crate) fn bad(&self, field: &'static str) -> RecordError {
        RecordError::Field {
            kind: self.kind,
            field,
        }
    }

    /// Refuses bytes that no field accounts for.
    pub(crate) fn end(self) -> Result<(), RecordError> {
        if self.body.is_empty() {
            Ok(())
        } else {
            Err(self.bad("end of record"))
        }
    }
}
