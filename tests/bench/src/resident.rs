//! What a hypervisor's process costs in memory beyond the guest's own.

use std::fs;
use std::io;

/// Proportional set size of a process without its guest's memory, KiB.
///
/// The guest's memory is the mapping, or the run of adjacent mappings of one file, that is at
/// least as large as the guest; nothing else in such a process is.
pub fn overhead_kib(pid: u32, guest_kib: u64) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    overhead(&text, guest_kib).ok_or_else(|| {
        let message = format!("process {pid} maps nothing as large as its guest");
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}

/// Bytes of address space and PSS of one mapping.
struct Mapping {
    kib: u64,
    pss_kib: u64,
}

fn overhead(smaps: &str, guest_kib: u64) -> Option<u64> {
    let mappings = parse(smaps);
    let total: u64 = mappings.iter().map(|mapping| mapping.pss_kib).sum();
    let guest = mappings
        .iter()
        .filter(|mapping| mapping.kib >= guest_kib)
        .max_by_key(|m| m.pss_kib)?;
    Some(total - guest.pss_kib)
}

fn parse(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let Some((name, rest)) = line.split_once(':') else {
            continue;
        };
        let kib = || {
            rest.trim()
                .strip_suffix(" kB")
                .and_then(|number| number.trim().parse().ok())
        };
        match (name, kib()) {
            ("Size", Some(kib)) => mappings.push(Mapping { kib, pss_kib: 0 }),
            ("Pss", Some(kib)) => {
                if let Some(last) = mappings.last_mut() {
                    last.pss_kib = kib;
                }
            }
            _ => {}
        }
    }
    mappings
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
5000-6000 r-xp 00000000 fe:00 1 /bin/x\nSize:                4 kB\nPss:                 3 kB\nPss_Dirty: 9 kB\n\
7000-9000 rw-s 00000000 00:01 2 /memfd:guest (deleted)\nSize:            65536 kB\nPss:             100 kB\n\
a000-b000 rw-p 00000000 00:00 0 [heap]\nSize:              132 kB\nPss:                20 kB\n";

    #[test]
    fn the_guests_memory_does_not_count() {
        assert_eq!(overhead(SMAPS, 65536), Some(23));
        assert_eq!(overhead(SMAPS, 65537), None);
    }
}
