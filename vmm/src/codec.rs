//! The one place that turns state structs into bytes and back.

use std::io;

use serde::{Serialize, de::DeserializeOwned};

/// Longest encoded struct that [`decode`] accepts, and the most it lets one allocate.
pub const MAX_BYTES: usize = 16 << 20;

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_BYTES>()
}

/// Encode `value`. Structs that leave the process carry a version of their own.
pub fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    bincode::serde::encode_to_vec(value, config())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Decode a struct that fills `bytes` exactly. Never panics, whatever `bytes` holds.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    if bytes.len() > MAX_BYTES {
        return Err(invalid(format!(
            "{} bytes of state are over the limit",
            bytes.len()
        )));
    }
    let (value, used) = bincode::serde::decode_from_slice(bytes, config())
        .map_err(|error| invalid(format!("damaged state: {error}")))?;
    if used != bytes.len() {
        return Err(invalid(format!(
            "damaged state: {} bytes too long",
            bytes.len() - used
        )));
    }
    Ok(value)
}

/// Refuse a state of `what` that was saved in another layout than the one that is `known`.
pub fn check_version(what: &str, saved: u16, known: u16) -> io::Result<()> {
    if saved == known {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "the saved {what} has version {saved}, this program knows {known}; use the same release \
             on both sides"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_refusals() {
        let bytes = encode(&(7u16, vec![1u64, 2], Some(true))).unwrap();
        assert_eq!(
            decode::<(u16, Vec<u64>, Option<bool>)>(&bytes).unwrap().1,
            [1, 2]
        );
        assert!(decode::<(u16, Vec<u64>)>(&bytes).is_err());
        assert!(decode::<Vec<u64>>(&[0xfd; 9]).is_err());
    }
}
