//! `key=value,...` as in `--disk` and `--net`.

use vmm_core::mac::Mac;
use vmm_core::spec::{DiskFormat, DiskSpec, NetSpec};

/// Split `text` and hand each pair to `take`, which says whether it knows the key.
fn pairs(
    text: &str,
    keys: &str,
    mut take: impl FnMut(&str, &str) -> Result<bool, String>,
) -> Result<(), String> {
    let mut seen = Vec::new();
    for part in text.split(',') {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| format!("{part:?} is no setting; write {keys}"))?;
        if seen.contains(&key) {
            return Err(format!("{key} is there twice"));
        }
        seen.push(key);
        if value.is_empty() {
            return Err(format!("{key} has no value"));
        }
        if !take(key, value)? {
            return Err(format!("unknown setting {key}; there are {keys}"));
        }
    }
    Ok(())
}

fn switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{key} is on or off, not {value:?}")),
    }
}

/// Where somebody listens: HOST:PORT.
pub fn address(text: &str) -> Result<String, String> {
    let host_and_port = text.rsplit_once(':').filter(|(host, port)| {
        let is_host = match host.strip_prefix('[') {
            Some(rest) => rest.ends_with(']'),
            None => !host.is_empty() && !host.contains(':'),
        };
        is_host && port.parse::<u16>().is_ok()
    });
    if host_and_port.is_none() {
        return Err("write HOST:PORT, such as b.example:7400 or [2001:db8::1]:7400".to_owned());
    }
    Ok(text.to_owned())
}

/// `path=...,format=raw|qcow2,readonly=on|off,direct=on|off`
pub fn disk(text: &str) -> Result<DiskSpec, String> {
    let mut disk = DiskSpec {
        path: String::new(),
        format: DiskFormat::default(),
        readonly: false,
        direct: true,
    };
    pairs(text, "path, format, readonly and direct", |key, value| {
        match key {
            "path" => value.clone_into(&mut disk.path),
            "format" => {
                disk.format = match value {
                    "raw" => DiskFormat::Raw,
                    "qcow2" => DiskFormat::Qcow2,
                    _ => return Err(format!("format is raw or qcow2, not {value:?}")),
                }
            }
            "readonly" => disk.readonly = switch(key, value)?,
            "direct" => disk.direct = switch(key, value)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if disk.path.is_empty() {
        return Err("the disk has no path=".to_owned());
    }
    Ok(disk)
}

/// `tap=...,mac=...`
pub fn net(text: &str) -> Result<NetSpec, String> {
    let (mut tap, mut mac) = (None, None::<Mac>);
    pairs(text, "tap (a name, or fd=N) and mac", |key, value| {
        match key {
            "tap" => tap = Some(value.to_owned()),
            "mac" => mac = Some(value.parse().map_err(|e| format!("{value:?}: {e}"))?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(NetSpec {
        tap: tap.ok_or("the network card has no tap=")?,
        mac: mac.ok_or("the network card has no mac=")?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for good in ["b:7400", "127.0.0.1:0", "[::1]:65535"] {
            assert_eq!(address(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "b",
            "b:",
            ":7400",
            "b:port",
            "b:65536",
            "::1:7400",
            "[::1:7400",
        ] {
            address(bad).unwrap_err();
        }
    }

    #[test]
    fn disks_are_read() {
        let read = disk("path=a.qcow2,format=qcow2,readonly=on,direct=off").unwrap();
        assert_eq!(
            (read.path.as_str(), read.format, read.readonly, read.direct),
            ("a.qcow2", DiskFormat::Qcow2, true, false)
        );
        for (text, part) in [
            ("a.raw", "write path"),
            ("path=a,fromat=raw", "unknown setting fromat"),
            ("path=a,path=b", "twice"),
            ("path=a,readonly=yes", "on or off"),
            ("format=raw", "no path"),
            ("path=a,format=vmdk", "raw or qcow2"),
        ] {
            let error = disk(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn cards_are_read() {
        let read = net("tap=tap0,mac=52:54:00:00:00:01").unwrap();
        assert_eq!(read.tap, "tap0");
        assert_eq!(net("tap=fd=5,mac=52:54:00:00:00:01").unwrap().tap, "fd=5");
        assert!(net("tap=tap0").unwrap_err().contains("mac="));
        assert!(net("tap=tap0,mac=1").unwrap_err().contains("six pairs"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = (disk(&text), net(&text));
        }
    }
}
