//! MAC addresses.

use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// The MAC address of a guest's network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// Why a text is no MAC address of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six hexadecimal pairs.
    #[error("write a MAC address as six pairs of hexadecimal digits, like 52:54:00:12:34:56")]
    Form,
    /// A group address.
    #[error(
        "this is a multicast MAC address; a card needs one whose first pair is even, like 52:..."
    )]
    Multicast,
    /// All zeroes.
    #[error("a MAC address of zeroes stands for none; write one like 52:54:00:12:34:56")]
    Zero,
}

impl Mac {
    /// A locally administered address made from four bytes that tell guests apart.
    pub fn local(unique: [u8; 4]) -> Self {
        let [a, b, c, d] = unique;
        Self([0x52, 0x54, a, b, c, d])
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().ok_or(MacError::Form)?;
            let is_hex = pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit());
            *byte = if is_hex {
                u8::from_str_radix(pair, 16).ok()
            } else {
                None
            }
            .ok_or(MacError::Form)?;
        }
        if pairs.next().is_some() {
            return Err(MacError::Form);
        }
        if bytes[0] & 1 == 1 {
            return Err(MacError::Multicast);
        }
        if bytes == [0; 6] {
            return Err(MacError::Zero);
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        alloc::format!("{mac}")
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, byte) in self.0.iter().enumerate() {
            let colon = if n == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bad_ones_are_refused() {
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "5:54:00:12:34:56",
            "+2:54:00:12:34:56",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(MacError::Form), "{text}");
        }
        assert_eq!("01:00:5e:00:00:01".parse::<Mac>(), Err(MacError::Multicast));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(bytes: [u8; 4]) {
            let mac = Mac::local(bytes);
            prop_assert_eq!(format!("{mac}").parse::<Mac>(), Ok(mac));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<Mac>();
        }
    }
}
