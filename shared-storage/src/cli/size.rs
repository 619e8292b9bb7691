//! Amounts of storage, as people write and read them.

use std::str::FromStr;

/// Bytes, each worth 1024 of the one before.
const UNITS: [&str; 5] = ["", "K", "M", "G", "T"];

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) bytes: u64,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unit = |(power, unit): (usize, &&str)| {
            let upper = text.to_ascii_uppercase();
            let digits = upper.strip_suffix(*unit)?.to_owned();
            let each = 1u64 << (10 * power);
            digits.parse::<u64>().ok()?.checked_mul(each)
        };
        let bytes = UNITS.iter().enumerate().find_map(unit);
        bytes
            .map(|bytes| Self { bytes })
            .ok_or_else(|| "write it as 10G, 512M, 1T or in bytes".to_owned())
    }
}

/// `bytes` with a unit of which there is at least one.
pub(super) fn in_words(bytes: u64) -> String {
    let power = (bytes.max(1).ilog2() / 10).min(4);
    let unit = ["bytes", "KiB", "MiB", "GiB", "TiB"][power as usize];
    if power == 0 {
        return format!("{bytes} {unit}");
    }
    let each = (1u64 << (10 * power)) as f64;
    format!("{:.1} {unit}", bytes as f64 / each)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let bytes = |text: &str| text.parse::<Size>().map(|size| size.bytes);
        assert_eq!(bytes("512"), Ok(512));
        assert_eq!(bytes("10G"), Ok(10 << 30));
        assert_eq!(bytes("3m"), Ok(3 << 20));
        assert_eq!(bytes("2T"), Ok(2 << 40));
        for wrong in ["", "G", "-1", "1.5G", "99999999T", "10 G", "1X"] {
            bytes(wrong).unwrap_err();
        }
    }

    #[test]
    fn sizes_are_said_in_units_that_fit() {
        let words = [0, 512, 1536, 3 << 20, 10 << 30, 2 << 40].map(in_words);
        let wanted = [
            "0 bytes",
            "512 bytes",
            "1.5 KiB",
            "3.0 MiB",
            "10.0 GiB",
            "2.0 TiB",
        ];
        assert_eq!(words, wanted);
    }
}
